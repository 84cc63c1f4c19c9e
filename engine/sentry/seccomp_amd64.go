package sentry

import _ "embed"

// seccompProgram is made by "go generate"; TestSeccompProgramIsCurrent compares
// it with what gVisor's rules give now.
//
//go:generate go run ./gen seccomp_amd64.json
//go:embed seccomp_amd64.json
var seccompProgram []byte
