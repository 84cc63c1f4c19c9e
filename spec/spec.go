// Package spec embeds the interface descriptions that the server publishes.
// The other files here are the sources of gen.
package spec

import _ "embed"

// Native is spec/native.yaml; nobody writes to it.
//
//go:embed native.yaml
var Native []byte
