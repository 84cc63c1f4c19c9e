package ingress

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// readHeaderTimeout ends clients that open connections and say nothing.
	readHeaderTimeout = 15 * time.Second
	// idleConnTimeout lies above what SDKs and load balancers keep idle
	// connections for.
	idleConnTimeout = 640 * time.Second
	maxHeaderBytes  = 256 << 10
)

// Server returns an HTTP server for h that speaks HTTP/1.1 and HTTP/2, the
// latter with and without TLS. There are no timeouts on bodies: streams last as
// long as the work they carry. tlsConfig is nil for plain HTTP.
func Server(h http.Handler, tlsConfig *tls.Config, log *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleConnTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         &protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          1000,
			MaxReceiveBufferPerConnection: 8 << 20,
			MaxReceiveBufferPerStream:     2 << 20,
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

// connKey finds the connection of a request in its context.
type connKey struct{}

// resetOnClose makes the close of an HTTP/1 client's connection a TCP reset:
// some SDKs take an orderly close in the middle of a stream for a network fault
// and do not look whether the sandbox was killed. With HTTP/2 the stream is
// reset anyway, and other streams share the connection.
func resetOnClose(r *http.Request) {
	if r.ProtoMajor != 1 {
		return
	}
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // it is being closed
	}
}
