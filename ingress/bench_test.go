package ingress_test

import (
	"io"
	"net/http"
	"testing"
)

// BenchmarkProxy measures one small request to a sandbox, both hops over
// loopback; the direct case is the floor.
func BenchmarkProxy(b *testing.B) {
	w := start(b, options{ports: map[uint16]http.Handler{49983: says("ok")}})
	get := func(b *testing.B, r *http.Request) {
		b.ReportAllocs()
		for b.Loop() {
			resp, err := w.client.Do(r)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	b.Run("direct", func(b *testing.B) {
		r, _ := http.NewRequestWithContext(b.Context(), "GET", "http://"+w.ports[49983]+"/health", nil)
		get(b, r)
	})
	b.Run("proxied", func(b *testing.B) {
		r, _ := http.NewRequestWithContext(b.Context(), "GET", w.url+"/health", nil)
		r.Header.Set("E2b-Sandbox-Id", boxID)
		r.Header.Set("E2b-Sandbox-Port", "49983")
		get(b, r)
	})
}

// BenchmarkDownload measures a large file through the proxy.
func BenchmarkDownload(b *testing.B) {
	const size = 256 << 20
	w := start(b, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "268435456")
		_, _ = io.CopyBuffer(struct{ io.Writer }{rw}, io.LimitReader(zeros{}, size), make([]byte, 256<<10))
	})}})
	r, _ := http.NewRequestWithContext(b.Context(), "GET", w.url+"/", nil)
	r.Header.Set("E2b-Sandbox-Id", boxID)
	r.Header.Set("E2b-Sandbox-Port", "3000")
	b.SetBytes(size)
	for b.Loop() {
		resp, err := w.client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}
