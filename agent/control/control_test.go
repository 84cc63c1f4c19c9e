package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/agent/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAgent records what it is asked.
type fakeAgent struct {
	inits  chan control.Init
	frozen chan struct{}
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{inits: make(chan control.Init, 8), frozen: make(chan struct{}, 8)}
}

func (f *fakeAgent) Init(_ context.Context, in control.Init) error {
	if in.SandboxID == "bad" {
		return fmt.Errorf("bad id: %w", errdefs.ErrInvalidArgument)
	}
	f.inits <- in
	return nil
}

func (f *fakeAgent) Prepare(ctx context.Context, in control.Init) error {
	if in.AccessToken != "" || in.EnvVars != nil {
		return errors.New("secrets were sent ahead")
	}
	return f.Init(ctx, in)
}

func (f *fakeAgent) Health() control.Health {
	return control.Health{Version: "v", Ready: true, Processes: 3}
}
func (f *fakeAgent) Freeze() { f.frozen <- struct{}{} }

func (f *fakeAgent) Dial(ctx context.Context, port uint16) (control.Ticket, error) {
	switch port {
	case 1:
		return control.Ticket{}, control.ErrRefused
	case 2:
		<-ctx.Done()
		return control.Ticket{}, ctx.Err()
	}
	return control.Ticket{byte(port)}, nil
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve runs an agent's end over rw until the test ends.
func serve(t *testing.T, rw io.ReadWriteCloser, h control.Handler) *control.Server {
	t.Helper()
	s := control.NewServer(rw, h, discard())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		_ = rw.Close()
		<-done
	})
	return s
}

func connect(t *testing.T, rw io.ReadWriteCloser) *control.Client {
	t.Helper()
	c := control.NewClient(rw, discard())
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestRequests(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	agent := newFakeAgent()
	server := serve(t, theirs, agent)
	c := connect(t, ours)
	ctx := within(t, 10*time.Second)
	if err := c.Ready(ctx); err != nil {
		t.Fatalf("Ready() = %v", err)
	}
	want := control.Init{
		SandboxID: "i1", AccessToken: "secret", EnvVars: map[string]string{"A": "\xff\xfeb"},
		Limits: control.Limits{WallTime: time.Minute, OutputBytes: 1 << 40}, Seed: []byte{0xff, 0}, Now: time.Unix(5, 6).UTC(),
	}
	if err := c.Init(ctx, want); err != nil {
		t.Fatalf("Init() = %v", err)
	}
	want.EnvVars = map[string]string{"A": "\ufffd\ufffdb"} // JSON is UTF-8
	if diff := cmp.Diff(want, <-agent.inits); diff != "" {
		t.Errorf("Init delivered (-want +got):\n%s", diff)
	}
	if err := c.Init(ctx, control.Init{SandboxID: "bad", AccessToken: "x"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Init(bad) = %v, want ErrInvalidArgument", err)
	}
	if err := c.Init(ctx, control.Init{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Init without a token = %v, want ErrInvalidArgument", err)
	}
	h, err := c.Health(ctx)
	if diff := cmp.Diff(control.Health{Version: "v", Ready: true, Processes: 3}, h); err != nil || diff != "" {
		t.Errorf("Health() = %v, %v", h, err)
	}
	if err := c.Freeze(ctx); err != nil {
		t.Errorf("Freeze() = %v", err)
	}
	if _, err := c.Dial(ctx, 1); !errors.Is(err, control.ErrRefused) {
		t.Errorf("Dial(1) = %v, want ErrRefused", err)
	}
	if ticket, err := c.Dial(ctx, 7); err != nil || ticket != (control.Ticket{7}) {
		t.Errorf("Dial(7) = %v, %v", ticket, err)
	}
	server.Emit(control.Event{Type: control.EventLimit, Limit: control.LimitOutput, PID: 4})
	select {
	case ev := <-c.Events():
		if ev.Limit != control.LimitOutput || ev.PID != 4 {
			t.Errorf("event = %+v", ev)
		}
	case <-ctx.Done():
		t.Error("no event")
	}
	// A dial that hangs holds up nothing but itself.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Dial(short, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial(2) = %v, want a timeout", err)
	}
	if _, err := c.Health(ctx); err != nil {
		t.Errorf("Health() after a hanging dial = %v", err)
	}
}

func TestClosedClient(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := control.NewClient(ours, discard())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Health(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Health() = %v, want ErrUnavailable", err)
	}
	if err := c.Ready(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Ready() = %v, want ErrUnavailable", err)
	}
}

// exchange lets a test put one end of a stream in the place of another, as a
// server's restart and a restore do, with whatever was cut off in between.
type exchange struct {
	in   chan []byte
	done chan struct{}
	once sync.Once
	buf  []byte
	out  func([]byte)
}

func newExchange() *exchange {
	return &exchange{in: make(chan []byte, 100), done: make(chan struct{})}
}

// deliver is what the peer's write does; after Close it is lost.
func (e *exchange) deliver(b []byte) {
	select {
	case e.in <- b:
	case <-e.done:
	}
}

func (e *exchange) Read(p []byte) (int, error) {
	if len(e.buf) == 0 {
		select {
		case e.buf = <-e.in:
		case <-e.done:
			return 0, io.EOF
		}
	}
	n := copy(p, e.buf)
	e.buf = e.buf[n:]
	return n, nil
}

func (e *exchange) Write(p []byte) (int, error) {
	e.out(bytes.Clone(p))
	return len(p), nil
}

func (e *exchange) Close() error {
	e.once.Do(func() { close(e.done) })
	return nil
}

// TestPeerReplaced starts a second client on the stream of a first one that
// died in the middle of a frame.
func TestPeerReplaced(t *testing.T) {
	t.Parallel()
	cuts := []int{0, 1, 3, 20, 40, 41, 60}
	for _, cut := range cuts {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			t.Parallel()
			agentEnd := newExchange()
			current := make(chan *exchange, 1)
			agentEnd.out = func(b []byte) {
				e := <-current
				e.deliver(b)
				current <- e
			}
			first := newExchange()
			var last []byte
			first.out = func(b []byte) { last = b; agentEnd.deliver(b) }
			current <- first
			agent := newFakeAgent()
			server := serve(t, agentEnd, agent)
			one := control.NewClient(first, discard())
			ctx := within(t, 10*time.Second)
			if err := one.Ready(ctx); err != nil {
				t.Fatalf("first Ready() = %v", err)
			}
			if err := one.Init(ctx, control.Init{SandboxID: "first", AccessToken: "t"}); err != nil {
				t.Fatal(err)
			}
			_ = one.Close()
			agentEnd.deliver(last[:min(cut, len(last))]) // died here

			second := newExchange()
			second.out = agentEnd.deliver
			<-current
			current <- second
			server.Emit(control.Event{Type: control.EventLimit}) // of the old epoch
			two := connect(t, second)
			if err := two.Ready(ctx); err != nil {
				t.Fatalf("second Ready() = %v", err)
			}
			if err := two.Init(ctx, control.Init{SandboxID: "second", AccessToken: "t"}); err != nil {
				t.Fatalf("second Init() = %v", err)
			}
			<-agent.inits
			if got := <-agent.inits; got.SandboxID != "second" {
				t.Errorf("agent was given %q", got.SandboxID)
			}
			select {
			case ev := <-two.Events():
				t.Errorf("event of an old epoch was delivered: %+v", ev)
			default:
			}
		})
	}
}

// TestAgentReplaced restarts the agent under a living client.
func TestAgentReplaced(t *testing.T) {
	t.Parallel()
	client := newExchange()
	a, b := newExchange(), newExchange()
	target := make(chan *exchange, 1)
	target <- a
	client.out = func(p []byte) {
		e := <-target
		e.deliver(p)
		target <- e
	}
	a.out = client.deliver
	b.out = a.out
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = control.NewServer(a, newFakeAgent(), discard()).Run(ctx)
	}()
	c := connect(t, client)
	wait := within(t, 10*time.Second)
	if err := c.Ready(wait); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = a.Close()
	<-done
	<-target
	target <- b
	serve(t, b, newFakeAgent())
	// The new agent greets in epoch 0; asking until it has been greeted back
	// is what a caller's retry does.
	for {
		short, stop := context.WithTimeout(wait, 100*time.Millisecond)
		_, err := c.Health(short)
		stop()
		if err == nil {
			return
		}
		if wait.Err() != nil {
			t.Fatalf("Health() = %v", err)
		}
	}
}

// TestHostileGuest sends what no agent would.
func TestHostileGuest(t *testing.T) {
	t.Parallel()
	huge := append([]byte{0xff}, "CSN10000000000000001ffffffff00000000"...)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	tests := map[string][]byte{
		"huge length":    bytes.Repeat(huge, 1000),
		"noise":          noise,
		"start bytes":    bytes.Repeat([]byte{0xff}, 1<<20),
		"no start bytes": bytes.Repeat([]byte{'a'}, 1<<20),
		"headers only":   bytes.Repeat([]byte("\xffCSN1"), 1<<18),
	}
	for name, sent := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			guest := newExchange()
			agent := newExchange()
			agent.out, guest.out = guest.deliver, agent.deliver
			c := connect(t, guest)
			guest.deliver(sent)
			serve(t, agent, newFakeAgent())
			if err := c.Ready(within(t, 20*time.Second)); err != nil {
				t.Fatalf("Ready() after %s = %v", name, err)
			}
			if _, err := c.Health(within(t, 20*time.Second)); err != nil {
				t.Fatalf("Health() after %s = %v", name, err)
			}
		})
	}
}

// TestGuestThatNeverReads must cost the caller its deadline only.
func TestGuestThatNeverReads(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := connect(t, ours)
	for range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := c.Health(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Health() = %v, want a timeout", err)
		}
		cancel()
	}
}
