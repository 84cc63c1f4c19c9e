package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// millis is how times are stored; the zero time is 0.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// text makes s storable in both engines, which PostgreSQL is strict about, and
// cuts it at limit bytes.
func text(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
}

// packer encodes several values and keeps the first error.
type packer struct{ err error }

func (p *packer) json(v any) string {
	b, err := json.Marshal(v)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("encode %T: %w", v, err)
	}
	return string(b)
}

func (p *packer) parse(s string, into any) {
	if err := json.Unmarshal([]byte(s), into); err != nil && p.err == nil {
		p.err = fmt.Errorf("decode stored %T: %w", into, err)
	}
}
