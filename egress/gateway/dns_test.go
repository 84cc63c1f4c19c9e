package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
)

func query(t testing.TB, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ask(t testing.TB, a egress.Attachment, q []byte) (dnsmessage.RCode, []netip.Addr) {
	t.Helper()
	out := a.DNS(t.Context(), q)
	var m dnsmessage.Message
	if err := m.Unpack(out); err != nil {
		t.Fatalf("answer %x: %v", out, err)
	}
	if m.ID != 7 || !m.Response {
		t.Errorf("header %+v", m.Header)
	}
	var addrs []netip.Addr
	for _, r := range m.Answers {
		addrs = append(addrs, netip.AddrFrom4(r.Body.(*dnsmessage.AResource).A))
	}
	return m.RCode, addrs
}

func attach(t testing.TB, g *gateway.Gateway, id string, p egress.Policy) egress.Attachment {
	t.Helper()
	a, err := g.Attach(t.Context(), id, p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestDNSAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := attach(t, w.gateway, "a", allowing("allowed.test", "*.wild.test"))
	long := strings.Repeat("secret.", 30) + "denied.test."
	for _, tt := range []struct {
		name string
		typ  dnsmessage.Type
		code dnsmessage.RCode
		n    int
	}{
		{"allowed.test.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"ALLOWED.test.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"x.wild.test.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"allowed.test.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 0},
		{"allowed.test.", 65, dnsmessage.RCodeSuccess, 0}, // HTTPS: would carry ECH keys
		{"allowed.test.", dnsmessage.TypeMX, dnsmessage.RCodeSuccess, 0},
		{"allowed.test.", dnsmessage.TypeTXT, dnsmessage.RCodeRefused, 0},
		{"allowed.test.", 10, dnsmessage.RCodeRefused, 0},
		{"allowed.test.", dnsmessage.TypeALL, dnsmessage.RCodeRefused, 0},
		{"denied.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"denied.test.", dnsmessage.TypeAAAA, dnsmessage.RCodeNameError, 0},
		{"denied.test.", dnsmessage.TypeTXT, dnsmessage.RCodeNameError, 0},
		{"wild.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{long, dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"allowed.test\x00.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"allowed test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"1.0.0.127.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, 0},
		{".", dnsmessage.TypeNS, dnsmessage.RCodeNameError, 0},
	} {
		code, addrs := ask(t, a, query(t, tt.name, tt.typ))
		if code != tt.code || len(addrs) != tt.n {
			t.Errorf("%q %v = %v %v, want %v and %d addresses", tt.name, tt.typ, code, addrs, tt.code, tt.n)
		}
		for _, x := range addrs {
			if !netip.MustParsePrefix("198.18.0.0/15").Contains(x) {
				t.Errorf("%q has the address %v, want a synthetic one", tt.name, x)
			}
		}
	}
	if l := w.lookups(); len(l) > 0 {
		t.Errorf("queries left the host: %v", l)
	}
	r := w.rec.find(t, func(r egress.Record) bool { return r.Kind == "dns" && r.Host == "denied.test" })
	if r.Verdict != egress.Deny || r.Hint != "--allow denied.test" || r.SandboxID != "a" {
		t.Errorf("record = %+v", r)
	}
	w.rec.find(t, func(r egress.Record) bool { return r.Host == "allowed.test?." })
}

func TestDNSMalformed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := attach(t, w.gateway, "a", allowing("allowed.test"))
	two := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("allowed.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
		{Name: dnsmessage.MustNewName("denied.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
	}}
	b, _ := two.Pack()
	if code, _ := ask(t, a, b); code != dnsmessage.RCodeFormatError {
		t.Errorf("two questions: %v", code)
	}
	chaos := query(t, "allowed.test.", dnsmessage.TypeA)
	chaos[len(chaos)-1] = 3
	if code, _ := ask(t, a, chaos); code != dnsmessage.RCodeRefused {
		t.Errorf("class CHAOS: %v", code)
	}
	update := query(t, "allowed.test.", dnsmessage.TypeA)
	update[2] |= 5 << 3
	if code, _ := ask(t, a, update); code != dnsmessage.RCodeNotImplemented {
		t.Errorf("opcode update: %v", code)
	}
	response := query(t, "allowed.test.", dnsmessage.TypeA)
	response[2] |= 0x80
	for name, q := range map[string][]byte{"response": response, "empty": {}, "short": {1, 2, 3}, "huge": make([]byte, 5000)} {
		if out := a.DNS(t.Context(), q); out != nil {
			t.Errorf("%s was answered with %x", name, out)
		}
	}
}

func FuzzDNS(f *testing.F) {
	w := newWorld(f, nil)
	a, err := w.gateway.Attach(context.Background(), "a", allowing("allowed.test"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(query(f, "allowed.test.", dnsmessage.TypeA))
	f.Add(query(f, "denied.test.", dnsmessage.TypeTXT))
	f.Fuzz(func(t *testing.T, q []byte) {
		out := a.DNS(context.Background(), q)
		if out == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil || !m.Response {
			t.Fatalf("DNS(%x) = %x: %v", q, out, err)
		}
		for _, r := range m.Answers {
			if !strings.EqualFold(r.Header.Name.String(), "allowed.test.") {
				t.Fatalf("an address for %s", r.Header.Name)
			}
		}
	})
}

// A sandbox without restriction by name gets real addresses, checked.
func TestDNSRealAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := attach(t, w.gateway, "a", egress.Policy{Default: egress.Allow})
	for name, want := range map[string]string{
		"allowed.test.": "[93.184.216.1]", "mixed.test.": "[93.184.216.1]",
		"rebind.test.": "[]", "private.test.": "[]", "mapped.test.": "[]", "own.test.": "[]", "unknown.test.": "[]",
	} {
		code, addrs := ask(t, a, query(t, name, dnsmessage.TypeA))
		if fmt.Sprint(addrs) != want || (want == "[]") != (code == dnsmessage.RCodeNameError) {
			t.Errorf("%s = %v %v, want %s", name, code, addrs, want)
		}
	}
	// Reachable by IPv6 only: a synthetic address, because the guest has IPv4.
	if _, addrs := ask(t, a, query(t, "six.test.", dnsmessage.TypeA)); len(addrs) != 1 || addrs[0].As4()[0] != 198 {
		t.Errorf("six.test = %v, want a synthetic address", addrs)
	}
	g := w.box("b", egress.Policy{Default: egress.Allow})
	if code, _, err := w.url(g.Client(t), "http://six.test:8000/"); err != nil || code != 200 {
		t.Errorf("GET six.test = %d, %v", code, err)
	}
	if code, _, err := w.url(g.Client(t), "http://allowed.test:8000/"); err != nil || code != 200 {
		t.Errorf("GET allowed.test = %d, %v", code, err)
	}
	r := w.rec.find(t, func(r egress.Record) bool { return r.Kind == "dns" && r.Host == "rebind.test" })
	if r.Verdict != egress.Deny || !strings.Contains(r.Reason, "metadata") {
		t.Errorf("record = %+v", r)
	}
}

// nameStore is an [egress.NameStore] in memory.
type nameStore struct {
	mu    sync.Mutex
	names map[string]map[string]netip.Addr
	err   error
}

func (s *nameStore) Names(_ context.Context, id string) (map[string]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]netip.Addr{}
	for k, v := range s.names[id] {
		out[k] = v
	}
	return out, s.err
}

func (s *nameStore) PutName(_ context.Context, id, name string, a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.names == nil {
		s.names = map[string]map[string]netip.Addr{}
	}
	if s.names[id] == nil {
		s.names[id] = map[string]netip.Addr{}
	}
	for n, x := range s.names[id] {
		if (n == name) != (x == a) {
			return errdefs.ErrAlreadyExists
		}
	}
	s.names[id][name] = a
	return nil
}

func (s *nameStore) CopyNames(context.Context, string, string) error { return nil }

// An address means one name for ever: in two sandboxes at once, over a restart,
// and when storing failed in between.
func TestNamesSurviveRestart(t *testing.T) {
	t.Parallel()
	store := &nameStore{}
	set := func(c *gateway.Config) { c.Names = store }
	policy := allowing("*")
	w := newWorld(t, set)
	a := attach(t, w.gateway, "a", policy)
	_, first := ask(t, a, query(t, "one.test.", dnsmessage.TypeA))
	_, again := ask(t, a, query(t, "One.Test.", dnsmessage.TypeA))
	if first[0] != again[0] {
		t.Errorf("one name has %v and %v", first, again)
	}
	store.err = errors.New("disk full")
	if code, _ := ask(t, a, query(t, "two.test.", dnsmessage.TypeA)); code != dnsmessage.RCodeServerFailure {
		t.Errorf("a name that could not be stored: %v", code)
	}
	store.err = nil

	w2 := newWorld(t, set) // the next server
	a = attach(t, w2.gateway, "a", policy)
	_, third := ask(t, a, query(t, "three.test.", dnsmessage.TypeA))
	_, back := ask(t, a, query(t, "one.test.", dnsmessage.TypeA))
	if back[0] != first[0] || third[0] == first[0] {
		t.Errorf("after a restart one.test has %v, before %v; three.test has %v", back, first, third)
	}
	store.names["bad"] = map[string]netip.Addr{"x.test": netip.MustParseAddr("10.0.0.1")}
	if _, err := w2.gateway.Attach(t.Context(), "bad", policy); err == nil {
		t.Error("a stored address outside the synthetic range was taken")
	}
}

func TestNamesConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Names = &nameStore{} })
	a := attach(t, w.gateway, "a", allowing("*"))
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			name := fmt.Sprintf("n%d.test.", i%16)
			_, addrs := ask(t, a, query(t, name, dnsmessage.TypeA))
			mu.Lock()
			defer mu.Unlock()
			if other, ok := seen[addrs[0]]; ok && other != name {
				t.Errorf("%v stands for %s and %s", addrs[0], other, name)
			}
			seen[addrs[0]] = name
		})
	}
	wg.Wait()
	if len(seen) != 16 {
		t.Errorf("16 names have %d addresses", len(seen))
	}
}

func TestNameLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Limits.Names = 3 })
	a := attach(t, w.gateway, "a", allowing("*"))
	for i := range 3 {
		if code, _ := ask(t, a, query(t, fmt.Sprintf("n%d.test.", i), dnsmessage.TypeA)); code != dnsmessage.RCodeSuccess {
			t.Fatal(code)
		}
	}
	if code, _ := ask(t, a, query(t, "n3.test.", dnsmessage.TypeA)); code != dnsmessage.RCodeServerFailure {
		t.Errorf("one name too many: %v", code)
	}
	if code, _ := ask(t, a, query(t, "n0.test.", dnsmessage.TypeA)); code != dnsmessage.RCodeSuccess {
		t.Errorf("a known name: %v", code)
	}
}

// The guest's own resolver works over UDP and TCP.
func TestResolverEndToEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	r := g.Resolver()
	addrs, err := r.LookupNetIP(t.Context(), "ip", "allowed.test.")
	if err != nil || len(addrs) != 1 {
		t.Fatalf("LookupNetIP() = %v, %v", addrs, err)
	}
	c, err := g.Dial(t.Context(), netip.MustParseAddrPort("10.0.0.1:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		q := query(t, "allowed.test.", dnsmessage.TypeA)
		_, _ = c.Write(append([]byte{0, byte(len(q))}, q...))
		b := make([]byte, 512)
		n, err := c.Read(b)
		if err != nil || n < 14 || b[2] != 0 || b[3] != 7 {
			t.Fatalf("DNS over TCP: %x, %v", b[:n], err)
		}
	}
}
