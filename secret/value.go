// Package secret holds values that must never be printed, logged or encoded by
// accident. Sealing and brokering of stored secrets will live here too. Any
// package may import it.
package secret

import (
	"crypto/subtle"
	"log/slog"
)

const redacted = "[redacted]"

// Value is a secret string. Every way of formatting it yields "[redacted]";
// only Reveal returns the text. The zero Value is the empty secret. Values are
// compared with Equal, not with ==.
type Value struct {
	// text is a pointer because fmt prints unexported fields of a struct by
	// reflection, without asking String: behind a pointer it finds an address.
	text *string
}

// New wraps s.
func New(s string) Value {
	if s == "" {
		return Value{}
	}
	return Value{text: &s}
}

// Reveal returns the secret itself. Call it at the point of use only.
func (v Value) Reveal() string {
	if v.text == nil {
		return ""
	}
	return *v.text
}

// IsZero reports whether the secret is empty.
func (v Value) IsZero() bool { return v.text == nil }

// Equal compares with a candidate in constant time. An empty Value equals
// nothing, so that an unset token never authorises.
func (v Value) Equal(candidate string) bool {
	return v.text != nil && subtle.ConstantTimeCompare([]byte(*v.text), []byte(candidate)) == 1
}

// String implements fmt.Stringer.
func (Value) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Value) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON implements json.Marshaler.
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
