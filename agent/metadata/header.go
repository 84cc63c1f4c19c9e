// Package metadata keeps the metadata of files: extended attributes
// user.e2b.KEY where the file system can hold them, and a sidecar file where it
// cannot.
package metadata

import (
	"fmt"
	"net/http"
	"strings"
)

const (
	headerPrefix = "X-Metadata-"
	attrPrefix   = "user.e2b."

	// maxKey is what Linux allows for a name, less our prefix.
	maxKey   = 255 - len(attrPrefix)
	maxTotal = 4096
)

// FromHeader returns the metadata of an upload; nil when there is none. The
// error is for the client.
func FromHeader(h http.Header) (map[string]string, error) {
	var m map[string]string
	total := 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, headerPrefix)
		if !ok || len(values) == 0 {
			continue
		}
		key = strings.ToLower(key)
		value := values[0]
		switch {
		case key == "":
			return nil, fmt.Errorf("metadata key is empty")
		case len(key) > maxKey:
			return nil, fmt.Errorf("metadata key is longer than %d bytes", maxKey)
		case !printable(key):
			return nil, fmt.Errorf("metadata key is not printable ASCII")
		case !printable(value):
			return nil, fmt.Errorf("metadata value of '%s' is not printable ASCII", key)
		}
		if total += len(key) + len(value); total > maxTotal {
			return nil, fmt.Errorf("metadata is larger than %d bytes", maxTotal)
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = value
	}
	return m, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
