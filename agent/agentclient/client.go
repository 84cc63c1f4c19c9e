// Package agentclient is the server's side of the agent's public protocol
// (Connect over TCP 49983), over any provider.Route.
package agentclient

// Client talks to one agent.
type Client struct{}
