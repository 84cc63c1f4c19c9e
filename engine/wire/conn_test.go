package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/caisson-dev/caisson/engine/wire"
)

func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		out[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return out[0], out[1]
}

func TestMessagesCarryFiles(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	from, to := wire.NewConn(a), wire.NewConn(b)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Senders interleave; each frame must keep its own files.
	const n = 50
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range n {
				var files []*os.File
				if i%2 == 0 {
					files = []*os.File{w, w}
				}
				m := wire.Message{ID: uint64(len(files) + 1), Op: "op", Body: wire.Encode(strings.Repeat("x", i*1000))}
				if err := from.Send(m, files...); err != nil {
					t.Errorf("Send() = %v", err)
				}
			}
		})
	}
	for range 2 * n {
		m, files, err := to.Receive()
		if err != nil {
			t.Fatalf("Receive() = %v", err)
		}
		if want := int(m.ID) - 1; len(files) != want {
			t.Fatalf("message %d came with %d files, want %d", m.ID, len(files), want)
		}
		for _, f := range files {
			if _, err := f.Write([]byte(".")); err != nil {
				t.Errorf("write to received file: %v", err)
			}
			_ = f.Close()
		}
	}
	wg.Wait()
	_ = w.Close()
	got, err := io.ReadAll(r)
	if want := bytes.Repeat([]byte("."), 2*n); err != nil || !bytes.Equal(got, want) {
		t.Errorf("received files wrote %d bytes, %v, want %d", len(got), err, len(want))
	}
	_ = from.Close()
	if _, _, err := to.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("Receive() after close = %v, want EOF", err)
	}
}

func TestReceiveBounds(t *testing.T) {
	t.Parallel()
	size := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, raw := range map[string][]byte{
		"too long":  size(wire.MaxMessage + 1),
		"huge":      size(1<<32 - 1),
		"not JSON":  append(size(3), "abc"...),
		"cut short": append(size(100), "{}"...),
		"half size": {0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			if _, err := a.Write(raw); err != nil {
				t.Fatal(err)
			}
			_ = a.CloseWrite()
			if m, _, err := wire.NewConn(b).Receive(); err == nil {
				t.Errorf("Receive() = %+v, want an error", m)
			}
		})
	}
}

func TestSendBounds(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	c := wire.NewConn(a)
	if err := c.Send(wire.Message{Body: wire.Encode(strings.Repeat("x", wire.MaxMessage))}); err == nil {
		t.Error("Send(too long) succeeded")
	}
	if err := c.Send(wire.Message{}, make([]*os.File, wire.MaxFiles+1)...); err == nil {
		t.Error("Send(too many files) succeeded")
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"a": true, "box1": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "../x": false, "A": false, "a b": false, "a-b": false, "a\x00": false,
	} {
		if got := wire.ValidID(id); got != want {
			t.Errorf("ValidID(%q) = %v, want %v", id, got, want)
		}
	}
}

func TestErrorKeepsCode(t *testing.T) {
	t.Parallel()
	inner := &wire.Error{Code: wire.CodeNotFound, Message: "no box"}
	got := wire.AsError(errors.Join(errors.New("outer"), inner))
	if got.Code != wire.CodeNotFound || !strings.Contains(got.Message, "outer") {
		t.Errorf("AsError() = %+v, want code %s and the whole text", got, wire.CodeNotFound)
	}
	if got := wire.AsError(errors.New(strings.Repeat("x", 1<<20))); len(got.Message) > 4<<10 {
		t.Errorf("AsError() keeps %d bytes of text", len(got.Message))
	}
	if wire.AsError(nil) != nil {
		t.Error("AsError(nil) is not nil")
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x04null\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, b := pair(t)
		go func() { _, _ = a.Write(raw); _ = a.CloseWrite() }()
		c := wire.NewConn(b)
		for {
			if _, _, err := c.Receive(); err != nil {
				return
			}
		}
	})
}
