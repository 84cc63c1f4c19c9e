package vnet_test

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/vnet"
)

// BenchmarkDownload moves bytes from the host to the guest through both stacks.
func BenchmarkDownload(b *testing.B) {
	const chunk = 128 << 10
	_, g := pair(b, vnet.Options{Attachment: &attachment{tcp: func(_ context.Context, f egress.Flow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, chunk)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}}})
	c, err := g.Dial(b.Context(), netip.MustParseAddrPort("1.2.3.4:80"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(chunk)
	buf := make([]byte, chunk)
	b.ResetTimer()
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpload moves bytes from a guest server to the host, as a file
// download through the agent does.
func BenchmarkUpload(b *testing.B) {
	const chunk = 128 << 10
	n, g := pair(b, vnet.Options{})
	l := g.Listen(b, 49983)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, chunk)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	c, err := n.Dial(b.Context(), 49983)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(chunk)
	buf := make([]byte, chunk)
	b.ResetTimer()
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial measures a connection, one byte each way and the close.
func BenchmarkDial(b *testing.B) {
	n, g := pair(b, vnet.Options{})
	l := g.Listen(b, 49983)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	one := []byte("x")
	for b.Loop() {
		c, err := n.Dial(b.Context(), 49983)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = c.Write(one)
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}

// BenchmarkRoundTrip measures one byte there and back on an open connection.
func BenchmarkRoundTrip(b *testing.B) {
	n, g := pair(b, vnet.Options{})
	l := g.Listen(b, 49983)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
		}
	}()
	c, err := n.Dial(b.Context(), 49983)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	one := []byte("x")
	for b.Loop() {
		_, _ = c.Write(one)
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdle reports the memory and goroutines of one idle network.
func BenchmarkIdle(b *testing.B) {
	const count = 100
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		goroutines := runtime.NumGoroutine()
		var nets []*vnet.Network
		for range count {
			host, guest, err := vnet.Pair()
			if err != nil {
				b.Fatal(err)
			}
			n, err := vnet.New(vnet.Options{FD: host})
			if err != nil {
				b.Fatal(err)
			}
			nets = append(nets, n)
			b.Cleanup(func() { closeFD(guest) })
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/count, "B/net")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/count, "goroutines/net")
		for _, n := range nets {
			_ = n.Close()
		}
	}
}

func closeFD(fd int) { _ = unix.Close(fd) }
