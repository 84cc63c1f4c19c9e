//go:build !amd64

package sentry

// seccompProgram is empty where none was generated yet; gVisor then compiles
// the filter at each start.
var seccompProgram []byte
