// Package wire is the protocol between the server and caisson-engine. It
// imports the standard library only, because both modules use it.
package wire

// Version is the protocol version; server and engine refuse another.
const Version = 1
