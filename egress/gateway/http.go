package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

const (
	maxResponseHead = 256 << 10
	maxInterim      = 16 // 1xx responses to one request
	// sendGrace is how long the end of a request may take after its response.
	sendGrace = time.Second
)

// httpFlow relays HTTP/1 requests one by one. Each is parsed, judged and
// written anew, so that upstream sees exactly what was judged.
type httpFlow struct {
	b      *box
	f      *flow
	client net.Conn
	br     *bufio.Reader // of client
	dial   func() (net.Conn, error)

	up   net.Conn
	ulim *io.LimitedReader // under ubr: bounds response heads
	ubr  *bufio.Reader     // of up
}

// badRequest is a request that is not passed on, and the answer to it.
type badRequest struct {
	status int
	err    error
}

// serveHTTP serves one client connection. dial is called at the first request
// that is allowed.
func (b *box) serveHTTP(f *flow, client net.Conn, br *bufio.Reader, dial func() (net.Conn, error)) error {
	h := &httpFlow{b: b, f: f, client: client, br: br, dial: dial}
	for first := true; ; first = false {
		if !first {
			_ = client.SetReadDeadline(time.Time{}) // idle between requests
			if _, err := br.Peek(1); err != nil {
				return nil
			}
		}
		_ = client.SetReadDeadline(time.Now().Add(b.g.cfg.Limits.Handshake))
		req, bad := h.next()
		if bad != nil {
			h.refuse(bad)
			return bad.err
		}
		_ = client.SetReadDeadline(time.Time{})
		if h.up == nil {
			if err := h.connect(); err != nil {
				status := http.StatusBadGateway
				var d *denial
				if errors.As(err, &d) {
					status = http.StatusForbidden
				}
				h.refuse(&badRequest{status, err})
				return err
			}
		}
		again, err := h.exchange(req)
		if err != nil || !again {
			return err
		}
	}
}

func (h *httpFlow) connect() error {
	up, err := h.dial()
	if err != nil {
		return err
	}
	h.up = up
	h.ulim = &io.LimitedReader{R: up}
	h.ubr = bufio.NewReaderSize(h.ulim, upstreamBuffer)
	return nil
}

// next reads and judges one request head.
func (h *httpFlow) next() (*http.Request, *badRequest) {
	head, status, err := readHead(h.br)
	if err != nil {
		return nil, &badRequest{status, &denial{reason: err.Error()}}
	}
	if bytes.HasPrefix(head, []byte("PRI ")) {
		return nil, &badRequest{http.StatusHTTPVersionNotSupported, &denial{reason: "HTTP/2 without TLS is not inspected"}}
	}
	field, err := checkHead(head)
	if err != nil {
		return nil, &badRequest{http.StatusBadRequest, &denial{reason: err.Error()}}
	}
	req, err := http.ReadRequest(h.br)
	if err != nil {
		return nil, &badRequest{http.StatusBadRequest, &denial{reason: "malformed HTTP request"}}
	}
	if req.ProtoMajor != 1 {
		return nil, &badRequest{http.StatusHTTPVersionNotSupported, &denial{reason: "only HTTP/1 is inspected"}}
	}
	if req.Method == http.MethodConnect {
		return nil, &badRequest{http.StatusMethodNotAllowed, &denial{reason: "CONNECT is not passed on: connections go out directly"}}
	}
	if req.URL.Scheme != "" && req.URL.Scheme != "http" || req.URL.User != nil {
		return nil, &badRequest{http.StatusBadRequest, &denial{reason: "HTTP request for another scheme or with user information"}}
	}
	// req.Host is the absolute-form target's if there is one; then the Host
	// field is judged as well, although it is not passed on.
	for _, host := range []string{req.Host, field} {
		if err := h.checkHost(host); err != nil {
			return nil, &badRequest{http.StatusForbidden, err}
		}
	}
	return req, nil
}

// checkHost judges one host that a request names.
func (h *httpFlow) checkHost(host string) error {
	if host == "" {
		return &denial{reason: "HTTP request without a host"}
	}
	if name, port, err := net.SplitHostPort(host); err == nil {
		if strings.Trim(port, "0123456789") != "" {
			return &denial{reason: "HTTP host has a bad port"}
		}
		host = name
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	name, addr, err := egress.ParseHost(host)
	if err != nil {
		return &denial{reason: fmt.Sprintf("HTTP host %q: %v", printable(host), err)}
	}
	return h.b.checkName(h.f, name, addr)
}

// refuse answers a request that is not passed on.
func (h *httpFlow) refuse(bad *badRequest) {
	body := fmt.Sprintf("sandbox network: %v\n", bad.err)
	var d *denial
	if errors.As(bad.err, &d) && d.hint != "" {
		body += "to allow it: " + d.hint + "\n"
	}
	_ = h.client.SetWriteDeadline(time.Now().Add(h.b.g.cfg.Limits.Handshake))
	_, _ = fmt.Fprintf(h.client, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		bad.status, http.StatusText(bad.status), len(body), body)
	closeGently(h.client)
}

// exchange passes one request and its response. It reports whether the
// connections can carry another.
func (h *httpFlow) exchange(req *http.Request) (bool, error) {
	upgrade := prepare(req)
	sent := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	w := newFlushWriter(h.up, &h.f.out)
	var body *flushBody
	if req.Body != nil && req.Body != http.NoBody {
		body = &flushBody{ReadCloser: req.Body, w: w}
		req.Body = body
	}
	wg.Go(func() { // the request goes up while responses come down
		err := req.Write(w)
		if err == nil {
			err = w.Flush()
		}
		sent <- err
		if err != nil {
			if body != nil && body.err != nil { // the guest broke off
				_ = h.up.Close()
			}
			return
		}
		// A client that goes away while upstream thinks takes the request
		// with it; one that only half-closes still gets its response.
		if _, err := h.br.Peek(1); err == io.EOF {
			_ = closeWrite(h.up)
		} else if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			_ = h.up.Close()
		}
	})
	again, switched, err := h.respond(req, upgrade)
	if err != nil {
		h.f.closeAll()
		return false, err
	}
	if switched {
		if err := <-sent; err != nil {
			h.f.closeAll()
			return false, broken(err)
		}
		return false, h.tunnel(&wg)
	}
	// The connections can be used again only when upstream took the whole
	// request; one that answers early leaves the rest of it in the way.
	if body != nil && !body.read.Load() {
		again = false
	}
	if again {
		select {
		case err := <-sent:
			again = err == nil
		case <-time.After(sendGrace):
			again = false
		}
	}
	if !again {
		closeGently(h.client)
		h.f.closeAll()
	}
	return again, nil
}

// respond relays the responses to one request, interim ones included.
func (h *httpFlow) respond(req *http.Request, upgrade bool) (again, switched bool, err error) {
	w := newFlushWriter(h.client, &h.f.in)
	for range maxInterim {
		h.ulim.N = maxResponseHead
		resp, err := http.ReadResponse(h.ubr, req)
		if err != nil {
			return false, false, errors.New("no response from upstream")
		}
		h.ulim.N = 1 << 62
		final := resp.StatusCode >= 200
		switched := resp.StatusCode == http.StatusSwitchingProtocols
		if switched && !upgrade {
			return false, false, errors.New("upstream switched protocols unasked")
		}
		if !final {
			if _, err := fmt.Fprintf(w, "HTTP/1.1 %03d %s\r\n", resp.StatusCode, http.StatusText(resp.StatusCode)); err == nil {
				_ = resp.Header.Write(w)
				_, _ = w.WriteString("\r\n")
			}
			if err := w.Flush(); err != nil {
				return false, false, broken(err)
			}
			if switched {
				return false, true, nil
			}
			continue
		}
		if !req.ProtoAtLeast(1, 1) { // no chunks for a client that knows none
			resp.ProtoMinor, resp.TransferEncoding, resp.Close = 0, nil, true
		}
		resp.Close = resp.Close || req.Close
		last := resp.Close
		resp.Body = &flushBody{ReadCloser: resp.Body, w: w}
		err = resp.Write(w)
		if err == nil {
			err = w.Flush()
		}
		_ = resp.Body.Close()
		if err != nil {
			return false, false, broken(err)
		}
		return !last, false, nil
	}
	return false, false, errors.New("too many interim responses from upstream")
}

// tunnel relays an upgraded connection. The goroutine in wg is peeking at the
// client; its end hands the reader over.
func (h *httpFlow) tunnel(wg *sync.WaitGroup) error {
	peeked := make(chan struct{})
	go func() {
		wg.Wait()
		close(peeked)
	}()
	err := h.f.relay(h.client, &gated{peeked, h.br}, h.up, h.ubr)
	h.f.closeAll()
	<-peeked
	return err
}

// gated reads from r once ready is closed.
type gated struct {
	ready <-chan struct{}
	r     io.Reader
}

func (g *gated) Read(p []byte) (int, error) {
	<-g.ready
	return g.r.Read(p)
}
