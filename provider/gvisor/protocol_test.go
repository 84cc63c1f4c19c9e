package gvisor_test

import (
	"encoding/json"
	"net"
	"os"
	"testing"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider/gvisor"
)

// raw connects to the engine as a server would, without greeting.
func raw(t *testing.T, p *gvisor.Provider) *wire.Conn {
	t.Helper()
	c, err := net.Dial("unix", p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return wire.NewConn(c.(*net.UnixConn))
}

func greet(t *testing.T, c *wire.Conn, version int) wire.Message {
	t.Helper()
	send(t, c, wire.Message{ID: 1, Op: wire.OpHello, Body: wire.Encode(wire.Hello{Version: version})})
	m, _, err := c.Receive()
	if err != nil {
		t.Fatalf("Receive() = %v", err)
	}
	return m
}

func send(t *testing.T, c *wire.Conn, m wire.Message, files ...*os.File) {
	t.Helper()
	if err := c.Send(m, files...); err != nil {
		t.Fatalf("Send(%s) = %v", m.Op, err)
	}
}

func TestEngineRefusesOtherVersions(t *testing.T) {
	p, _ := fresh(t)
	m := greet(t, raw(t, p), wire.Version+1)
	if m.Error == nil || m.Error.Code != wire.CodeIncompatible {
		t.Errorf("answer to another version = %+v, want %s", m, wire.CodeIncompatible)
	}
}

func TestEngineWantsHelloFirst(t *testing.T) {
	p, _ := fresh(t)
	c := raw(t, p)
	send(t, c, wire.Message{ID: 1, Op: wire.OpList})
	if m, _, err := c.Receive(); err == nil {
		t.Errorf("answer before hello = %+v, want the connection to end", m)
	}
}

// A kill that follows a create on the wire never finds nothing to kill.
func TestKillDoesNotOvertakeCreate(t *testing.T) {
	p, dir := fresh(t)
	c := raw(t, p)
	greet(t, c, wire.Version)
	agent, overlays := p.Layout()
	for range 10 {
		id := "race"
		send(t, c, wire.Message{ID: 2, Op: wire.OpCreate, Body: wire.Encode(wire.Create{
			ID: id, Rootfs: agent, Agent: agent, OverlayDir: overlays,
		})})
		send(t, c, wire.Message{ID: 3, Op: wire.OpKill, Body: wire.Encode(wire.ByID{ID: id})})
		for got := map[uint64]bool{}; !got[2] || !got[3]; {
			m, files, err := c.Receive()
			if err != nil {
				t.Fatalf("Receive() = %v", err)
			}
			for _, f := range files {
				_ = f.Close()
			}
			got[m.ID] = true
			if m.ID == 3 && m.Error != nil {
				t.Errorf("kill = %v", m.Error)
			}
		}
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

func TestEngineRefusesBadRequests(t *testing.T) {
	p, dir := fresh(t)
	c := raw(t, p)
	greet(t, c, wire.Version)
	agent, overlays := p.Layout()
	good := wire.Create{ID: "box", Rootfs: agent, Agent: agent, OverlayDir: overlays}
	for name, change := range map[string]func(*wire.Create){
		"id that is a path":       func(r *wire.Create) { r.ID = "../../etc" },
		"relative image":          func(r *wire.Create) { r.Rootfs = "rootfs" },
		"image that is a device":  func(r *wire.Create) { r.Rootfs = "/dev/null" },
		"image that is absent":    func(r *wire.Create) { r.Agent = dir + "/absent" },
		"negative limit":          func(r *wire.Create) { r.DiskBytes = -1 },
		"memory for no sentry":    func(r *wire.Create) { r.MemoryBytes = 1 << 20 },
		"saved files from a file": func(r *wire.Create) { r.FilesFrom = agent },
	} {
		bad := good
		change(&bad)
		send(t, c, wire.Message{ID: 9, Op: wire.OpCreate, Body: wire.Encode(bad)})
		m, _, err := c.Receive()
		if err != nil {
			t.Fatalf("Receive() = %v", err)
		}
		if m.Error == nil || m.Error.Code != wire.CodeInvalid {
			t.Errorf("create with %s = %+v, want %s", name, m, wire.CodeInvalid)
		}
	}
	for _, m := range []wire.Message{
		{ID: 9, Op: "format-disk", Body: wire.Encode(wire.ByID{ID: "box"})},
		{ID: 9, Op: wire.OpStart, Body: json.RawMessage(`"box"`)},
		{ID: 9, Op: wire.OpStart, Body: wire.Encode(wire.ByID{ID: "absent"})},
	} {
		send(t, c, m)
		if r, _, err := c.Receive(); err != nil || r.Error == nil {
			t.Errorf("%s %s = %+v, %v, want an error", m.Op, m.Body, r, err)
		}
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}
