package gvisor

import (
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor/engine"
)

// meteredEngine answers as an engine whose boxes have used as much CPU time as
// used says, in seconds.
func meteredEngine(t *testing.T, used *atomic.Int64) *Provider {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "e.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := wire.NewConn(nc.(*net.UnixConn))
		defer c.Close()
		for {
			m, _, err := c.Receive()
			if err != nil {
				return
			}
			out := wire.Message{ID: m.ID}
			switch m.Op {
			case wire.OpHello:
				out.Body = wire.Encode(wire.HelloReply{Version: wire.Version, Build: "engine"})
			case wire.OpStats:
				out.Body = wire.Encode(wire.Stats{CPUNanos: used.Load() * int64(time.Second)})
			}
			if c.Send(out) != nil {
				return
			}
		}
	}()
	c, err := engine.Connect(t.Context(), engine.Options{Binary: "engine", Root: t.TempDir(), Socket: socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &Provider{boxes: map[string]*Box{}, log: slog.New(slog.DiscardHandler), client: c, fresh: make(chan struct{})}
}

// What a warm box uses until it is claimed is nobody's, also what it used after
// it was last looked at.
func TestClaimCountsFromNow(t *testing.T) {
	t.Parallel()
	var used atomic.Int64
	b := newBox(meteredEngine(t, &used), "warm", meta{})
	used.Store(1)
	if _, err := b.Stats(t.Context()); err != nil {
		t.Fatal(err)
	}
	used.Store(600) // its start command
	if err := b.Claim(t.Context(), provider.Identity{SandboxID: "warm", Egress: denyAll{}}); err != nil {
		t.Fatal(err)
	}
	used.Store(602)
	st, err := b.Stats(t.Context())
	if err != nil || st.CPUUsage != 2*time.Second {
		t.Errorf("Stats() = %s of CPU, %v; want 2s", st.CPUUsage, err)
	}
}
