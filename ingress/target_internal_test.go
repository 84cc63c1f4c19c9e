package ingress

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

func FuzzRoute(f *testing.F) {
	for _, s := range [][3]string{
		{"3000-iabc.box.example", "", ""},
		{"3000-iabc-x.localhost:80", "iother", "1"},
		{"box.example", "iabc", "49983"},
		{"[::1]:3000", "iabc", "80"},
		{"3000-iabc.box.example.", "", ""},
		{"3000-iabc.evil\x00.box.example", "", ""},
		{"3000-iabc.box.example:x", "", ""},
		{"-.box.example", "", ""},
		{"3000-iabc.evil.example", "iabc", "1"},
		{"3000-I.BOX.EXAMPLE", "", ""},
		{"٣-iabc.box.example", "", ""},
		{"%33-iabc.box.example", "", ""},
		{"user@3000-iabc.box.example", "", ""},
		{"127.0.0.1", "iabc", "00080"},
		{"xbox.example", "", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	h, err := New(Config{Domains: []string{"box.example"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(h.Close)
	f.Fuzz(func(t *testing.T, host, id, port string) {
		r := &http.Request{Host: host, Header: http.Header{}}
		if id != "" {
			r.Header[headerID] = []string{id}
		}
		if port != "" {
			r.Header[headerPort] = []string{port}
		}
		to, err := h.route(r)
		if err != nil {
			if to != (target{}) {
				t.Fatalf("route(%q, %q, %q) = %+v and an error", host, id, port, to)
			}
			return
		}
		if to == (target{}) {
			if id != "" || port != "" {
				t.Fatalf("route(%q, %q, %q) ignored the headers", host, id, port)
			}
			return
		}
		if !isID(string(to.id)) || to.port == 0 {
			t.Fatalf("route(%q, %q, %q) = %+v", host, id, port, to)
		}
		if to.shared {
			if string(to.id) != id {
				t.Fatalf("route(%q, %q, %q) = %+v", host, id, port, to)
			}
			return
		}
		// A label decided: the host must be printable, below a domain of ours,
		// and begin with what was decided.
		low := strings.ToLower(host)
		if !strings.Contains(low, ".box.example") && !strings.Contains(low, ".localhost") {
			t.Fatalf("route(%q, %q, %q) = %+v from a foreign domain", host, id, port, to)
		}
		if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/@%?#\\", r) }) {
			t.Fatalf("route(%q) accepted a host that others may read differently", host)
		}
		if !strings.Contains(low, "-"+string(to.id)) {
			t.Fatalf("route(%q) = %+v", host, to)
		}
	})
}
