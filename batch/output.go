package batch

import (
	"fmt"
	"strings"
)

// half is how much is kept of the beginning, and how much of the end, of each of
// the two outputs of an item: 1 MiB an item in all.
const half = 256 << 10

// output keeps the first and the last of what is written to it.
type output struct {
	head []byte
	// tail is a ring once it is full; next is where its oldest byte is then.
	tail  []byte
	next  int
	total int64
}

// Write implements io.Writer; it never fails.
func (o *output) Write(p []byte) (int, error) {
	n := len(p)
	o.total += int64(n)
	if room := half - len(o.head); room > 0 {
		take := min(room, len(p))
		o.head = append(o.head, p[:take]...)
		p = p[take:]
	}
	if len(p) > half {
		p = p[len(p)-half:]
	}
	if room := half - len(o.tail); room > 0 && len(p) > 0 {
		take := min(room, len(p))
		o.tail = append(o.tail, p[:take]...)
		p = p[take:]
	}
	for len(p) > 0 {
		took := copy(o.tail[o.next:], p)
		o.next = (o.next + took) % half
		p = p[took:]
	}
	return n, nil
}

// result is what was kept, as text.
func (o *output) result() Output {
	out := Output{Bytes: o.total}
	var b strings.Builder
	b.Grow(len(o.head) + len(o.tail) + 64)
	b.Write(o.head)
	if missing := o.total - int64(len(o.head)+len(o.tail)); missing > 0 {
		out.Truncated = true
		fmt.Fprintf(&b, "\n[... %d bytes left out ...]\n", missing)
	}
	b.Write(o.tail[o.next:])
	b.Write(o.tail[:o.next])
	out.Text = b.String()
	return out
}
