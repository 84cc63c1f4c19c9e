package template

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// DefaultTag is the tag of a reference that names none, and for now the only
// one there is but of snapshots.
const DefaultTag = "default"

// maxName is the longest name of a template in bytes.
const maxName = 128

// Reference is how a request names a template: [namespace/]name[:tag].
type Reference struct {
	// Namespace is a team, or empty for the caller's own team and, after it,
	// the public templates.
	Namespace string
	// Name is an alias or a template ID.
	Name string
	Tag  string
}

// ParseReference reads a reference, trimmed and in lower case as E2B does. A
// malformed one is errdefs.ErrInvalidArgument.
func ParseReference(s string) (Reference, error) {
	ref := strings.ToLower(strings.TrimSpace(s))
	var r Reference
	rest, tag, tagged := strings.Cut(ref, ":")
	r.Tag = DefaultTag
	if tagged {
		r.Tag = tag
	}
	r.Name = rest
	namespace, name, spaced := strings.Cut(rest, "/")
	if spaced {
		r.Namespace, r.Name = namespace, name
	}
	switch {
	case len(r.Name) > maxName || len(r.Namespace) > maxName || len(r.Tag) > maxName:
		return Reference{}, badReference(s, fmt.Sprintf("a part is longer than %d characters", maxName))
	case !isWord(r.Name, ""):
		return Reference{}, badReference(s, "the name must be of a-z, 0-9, - and _")
	case spaced && !isWord(r.Namespace, ""):
		return Reference{}, badReference(s, "the namespace must be of a-z, 0-9, - and _")
	case !isWord(r.Tag, "."):
		return Reference{}, badReference(s, "the tag must be of a-z, 0-9, -, _ and .")
	case uuid.Validate(r.Tag) == nil:
		return Reference{}, badReference(s, "the tag must not be a UUID")
	}
	return r, nil
}

func badReference(s, why string) error {
	return fmt.Errorf("template reference %.200q: %s: %w", s, why, errdefs.ErrInvalidArgument)
}

func isWord(s, extra string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_"+extra) == ""
}

// String returns the reference in its shortest form.
func (r Reference) String() string {
	s := r.Name
	if r.Namespace != "" {
		s = r.Namespace + "/" + s
	}
	if r.Tag != DefaultTag {
		s += ":" + r.Tag
	}
	return s
}
