package providertest

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

func (s *suite) lifecycle(t *testing.T) {
	p := s.new(t)
	if err := p.Probe(step(t)); err != nil {
		t.Fatalf("Probe() = %v", err)
	}
	b := s.create(t, p, s.spec())
	if h, err := b.Control().Health(step(t)); err != nil || h.Ready {
		t.Fatalf("Health() before Init = %+v, %v, want not ready", h, err)
	}
	c := s.agent(t, b)
	if got := s.tool(t, c, "echo", "hello"); got != "hello" {
		t.Errorf("echo = %q, want hello", got)
	}
	if !has(t, p, b.Handle()) {
		t.Error("List() does not contain a running box")
	}
	if st, err := b.Stats(step(t)); err != nil || st.At.IsZero() {
		t.Errorf("Stats() = %+v, %v", st, err)
	}
	waited := make(chan provider.Exit, 1)
	go func() {
		x, _ := b.Wait(context.Background())
		waited <- x
	}()
	for i := range 2 {
		if err := b.Destroy(step(t)); err != nil {
			t.Fatalf("Destroy() number %d = %v", i+1, err)
		}
	}
	select {
	case x := <-waited:
		if x.Reason != provider.ReasonDestroyed {
			t.Errorf("Wait() after Destroy = %+v, want %s", x, provider.ReasonDestroyed)
		}
	case <-time.After(patience):
		t.Error("Wait() does not return after Destroy")
	}
	if has(t, p, b.Handle()) {
		t.Error("List() contains a destroyed box")
	}
	if _, err := p.Open(step(t), b.Handle(), NewRecorder(false)); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Open(destroyed) = %v, want ErrNotFound", err)
	}
	s.nothingLeft(t, p)
}

func (s *suite) refusals(t *testing.T) {
	p := s.new(t)
	noEgress, badID := s.spec(), s.spec()
	noEgress.Egress = nil
	badID.SandboxID = "../escape"
	for name, spec := range map[string]provider.Spec{"no egress attachment": noEgress, "bad id": badID} {
		if b, err := p.Create(step(t), spec); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Create(%s) = %v, %v, want ErrInvalidArgument", name, b, err)
		}
	}
	first := s.spec()
	b := s.create(t, p, first)
	if _, err := p.Create(step(t), first); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Create(same id) = %v, want ErrAlreadyExists", err)
	}
	if _, err := b.Control().Health(step(t)); err != nil {
		t.Errorf("Health() of the first box after a second of its id was refused = %v", err)
	}
	if _, err := p.Open(step(t), b.Handle(), nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Open(no egress attachment) = %v, want ErrInvalidArgument", err)
	}
	gone := b.Handle()
	gone.ID = id()
	if _, err := p.Open(step(t), gone, NewRecorder(false)); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Open(unknown) = %v, want ErrNotFound", err)
	}
}

func (s *suite) list(t *testing.T) {
	p := s.new(t)
	want := []string{s.create(t, p, s.spec()).Handle().ID, s.create(t, p, s.spec()).Handle().ID}
	slices.Sort(want)
	hs, err := p.List(step(t))
	if err != nil {
		t.Fatalf("List() = %v", err)
	}
	var got []string
	for _, h := range hs {
		got = append(got, h.ID)
		if h.Provider != p.Name() {
			t.Errorf("handle of provider %q, want %q", h.Provider, p.Name())
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List() (-want +got):\n%s", diff)
	}
}

// cancelDuringCreate gives up at many moments; whatever the moment, nothing is
// left, or the box is whole.
func (s *suite) cancelDuringCreate(t *testing.T) {
	p := s.new(t)
	for _, after := range []time.Duration{0, 2, 10, 25, 50, 75, 100, 150} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		b, err := p.Create(ctx, s.spec())
		cancel()
		if err == nil {
			s.destroy(t, b)
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			t.Errorf("Create(cancelled after %v) = %v, want the context's error", after*time.Millisecond, err)
		}
		if hs, err := p.List(step(t)); err != nil || len(hs) != 0 {
			t.Fatalf("List() after a create cancelled after %v = %v, %v, want none", after*time.Millisecond, hs, err)
		}
	}
	s.nothingLeft(t, p)
}

func (s *suite) nothingLeft(t *testing.T, p provider.Provider) {
	t.Helper()
	if s.o.Leftovers == nil {
		return
	}
	if left := s.o.Leftovers(t, p); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

// restart loses the provider and takes the box over with another: the guest's
// processes go on.
func (s *suite) restart(t *testing.T) {
	if s.o.Restart == nil {
		t.Skip("boxes of this provider do not survive a restart")
	}
	p := s.new(t)
	b, err := p.Create(step(t), s.spec())
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	c := s.agent(t, b)
	s.background(t, c, "serve", "0.0.0.0:8000")
	if got := s.get(t, b, 8000, "/count"); got != "1" {
		t.Fatalf("count = %q, want 1", got)
	}
	p = s.o.Restart(t, p)
	if !has(t, p, b.Handle()) {
		t.Fatal("List() after restart does not contain the box")
	}
	rec := NewRecorder(true)
	b, err = p.Open(step(t), b.Handle(), rec)
	if err != nil {
		t.Fatalf("Open() after restart = %v", err)
	}
	defer s.destroy(t, b)
	if got := s.get(t, b, 8000, "/count"); got != "2" {
		t.Errorf("count after restart = %q, want 2", got)
	}
	c = s.client(t, b)
	if got := s.tool(t, c, "echo", "still"); got != "still" {
		t.Errorf("echo after restart = %q", got)
	}
	if got := s.tool(t, c, "dial", "192.0.2.9:80", "ping"); got != "ping" {
		t.Errorf("dial after restart = %q, want ping: the new attachment is not in use", got)
	}
	// Opening what is open gives the box, with its newest attachment.
	if again, err := p.Open(step(t), b.Handle(), NewRecorder(false)); err != nil || again.Handle().ID != b.Handle().ID {
		t.Errorf("Open() of an open box = %v, %v", again, err)
	}
	if got := s.tool(t, c, "dial", "192.0.2.9:80", "ping"); got != "refused" {
		t.Errorf("dial after opening with a denying attachment = %q, want refused", got)
	}
}

func (s *suite) capabilities(t *testing.T) {
	p := s.new(t)
	caps := p.Capabilities()
	b := s.create(t, p, s.spec())
	_, restorer := p.(provider.Restorer)
	_, freezer := b.(provider.Freezer)
	_, claimer := b.(provider.Claimer)
	_, snapshotter := b.(provider.Snapshotter)
	_, exporter := b.(provider.LayerExporter)
	for _, c := range []struct {
		name          string
		claimed, able bool
	}{
		{"Restore", caps.Restore, restorer},
		{"Freeze", caps.Freeze, freezer},
		{"Claim", caps.Claim, claimer},
		{"Snapshots", len(caps.Snapshots) > 0, snapshotter},
		{"BuildsImages", caps.BuildsImages, exporter},
	} {
		if c.claimed != c.able {
			t.Errorf("capability %s is %v, and the interface is there: %v", c.name, c.claimed, c.able)
		}
	}
	if diff := cmp.Diff(caps, p.Capabilities()); diff != "" {
		t.Errorf("Capabilities() changed:\n%s", diff)
	}
	for _, k := range caps.Snapshots {
		if !slices.Contains([]snapshot.Kind{snapshot.Filesystem, snapshot.Memory}, k) {
			t.Errorf("unknown snapshot kind %q", k)
		}
	}
}

func (s *suite) deadline(t *testing.T) {
	p := s.new(t)
	spec := s.spec()
	spec.Deadline = time.Now().Add(time.Hour)
	b := s.create(t, p, spec)
	d, ok := b.(provider.Deadliner)
	if !ok {
		t.Skip("this provider's boxes have no deadline")
	}
	if err := d.SetDeadline(step(t), time.Now().Add(50*time.Millisecond)); err != nil {
		t.Fatalf("SetDeadline() = %v", err)
	}
	x, err := b.Wait(step(t))
	if err != nil || x.Reason != provider.ReasonDeadline {
		t.Errorf("Wait() after the deadline = %+v, %v, want %s", x, err, provider.ReasonDeadline)
	}
}

// leaks makes and destroys boxes; descriptors and goroutines go back to what
// they were after the first.
func (s *suite) leaks(t *testing.T) {
	p := s.new(t)
	round := func() {
		b, err := p.Create(step(t), s.spec())
		if err != nil {
			t.Fatalf("Create() = %v", err)
		}
		if r, err := b.Route(step(t), 1); err == nil {
			if c, err := r.Dial(step(t)); err == nil {
				_ = c.Close()
			}
		}
		s.destroy(t, b)
	}
	round() // what is made once is not a leak
	runtime.GC()
	fds, routines := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		runtime.GC()
		f, r := openFiles(t), runtime.NumGoroutine()
		if len(f) <= len(fds) && r <= routines {
			break
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			t.Fatalf("after 5 more boxes: %d descriptors, were %d; %d goroutines, were %d\n%s\n%s",
				len(f), len(fds), r, routines, strings.Join(f, "\n"), stacks)
		}
		time.Sleep(20 * time.Millisecond) // the kernel and timers settle on their own
	}
	s.nothingLeft(t, p)
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc to count descriptors in")
	}
	var out []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil {
			out = append(out, e.Name()+" "+to)
		}
	}
	return out
}
