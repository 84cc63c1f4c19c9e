// Package version holds the version of the agent protocol that this agent
// speaks. It imports nothing; anyone may import it.
package version

// Envd is what create and connect report as envdVersion: the release of the
// E2B agent whose behaviour this agent has. Clients switch features by it.
const Envd = "0.6.13"
