package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

var headEnd = []byte("\r\n\r\n")

// readHead waits for a whole request head and returns it without consuming
// it. The head fits br's buffer, or it is too long.
func readHead(br *bufio.Reader) (head []byte, status int, err error) {
	for n, seen := 1, 0; ; {
		b, err := br.Peek(n)
		if len(b) < n {
			if errors.Is(err, bufio.ErrBufferFull) {
				return nil, http.StatusRequestHeaderFieldsTooLarge, errors.New("HTTP request head is too long")
			}
			return nil, http.StatusRequestTimeout, errors.New("HTTP request head is not complete")
		}
		b, _ = br.Peek(br.Buffered())
		if i := bytes.Index(b[seen:], headEnd); i >= 0 {
			return b[:seen+i+len(headEnd)], 0, nil
		}
		n, seen = len(b)+1, max(0, len(b)-len(headEnd)+1)
	}
}

// checkHead refuses request heads that two parsers could read differently, and
// returns the Host field. It is stricter than net/http, which parses the head
// after it.
func checkHead(head []byte) (host string, err error) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	for _, l := range lines {
		if strings.ContainsAny(l, "\r\n\x00") {
			return "", errors.New("HTTP request head has a stray control character")
		}
	}
	count := map[string]int{}
	for _, l := range lines[1:] {
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || strings.IndexFunc(name, func(r rune) bool { return r >= 0x80 || !tokenByte(byte(r)) }) >= 0 {
			return "", errors.New("HTTP request has a malformed header line")
		}
		name, value = strings.ToLower(name), strings.Trim(value, " \t")
		count[name]++
		switch name {
		case "host":
			host = value
		case "content-length":
			if value == "" || strings.Trim(value, "0123456789") != "" {
				return "", errors.New("HTTP request has a malformed Content-Length")
			}
		case "transfer-encoding":
			if !strings.EqualFold(value, "chunked") {
				return "", errors.New("HTTP request has a Transfer-Encoding other than chunked")
			}
		}
	}
	old := strings.HasSuffix(lines[0], " HTTP/1.0")
	switch {
	case count["host"] > 1:
		return "", errors.New("HTTP request has more than one Host")
	case count["content-length"] > 1, count["transfer-encoding"] > 1, count["content-length"] > 0 && count["transfer-encoding"] > 0:
		return "", errors.New("HTTP request tells its length in more than one way")
	case old && count["transfer-encoding"] > 0:
		return "", errors.New("HTTP/1.0 request with Transfer-Encoding")
	}
	return host, nil
}

// prepare removes what must not be passed on and reports whether the request
// asks for WebSocket, the one upgrade that is: another protocol behind an
// upgrade (HTTP/2) could name other hosts.
func prepare(req *http.Request) (upgrade bool) {
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // or net/http invents one
	}
	var keep []string
	asked := false
	for _, v := range req.Header["Connection"] {
		for t := range strings.SplitSeq(v, ",") {
			t = strings.Trim(t, " \t")
			switch strings.ToLower(t) {
			case "upgrade":
				asked = true
			case "http2-settings", "":
			default:
				keep = append(keep, t)
			}
		}
	}
	upgrade = asked && len(req.Header["Upgrade"]) == 1 && strings.EqualFold(req.Header.Get("Upgrade"), "websocket")
	if upgrade {
		keep = append(keep, "Upgrade")
	} else {
		req.Header.Del("Upgrade")
	}
	req.Header.Del("Http2-Settings")
	req.Header.Del("Connection")
	if len(keep) > 0 {
		req.Header.Set("Connection", strings.Join(keep, ", "))
	}
	return upgrade
}

// flushWriter collects small writes. It is flushed before each read of the
// body that it carries, so nothing that exists waits for what does not yet. It
// is not a *bufio.Writer because net/http flushes those at other times.
type flushWriter struct{ w *bufio.Writer }

func newFlushWriter(w io.Writer, count *atomic.Int64) *flushWriter {
	return &flushWriter{bufio.NewWriterSize(&countWriter{w, count}, 4<<10)}
}

func (w *flushWriter) Write(p []byte) (int, error)       { return w.w.Write(p) }
func (w *flushWriter) WriteByte(c byte) error            { return w.w.WriteByte(c) }
func (w *flushWriter) WriteString(s string) (int, error) { return w.w.WriteString(s) }
func (w *flushWriter) Flush() error                      { return w.w.Flush() }

type countWriter struct {
	w     io.Writer
	count *atomic.Int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.count.Add(int64(n))
	return n, err
}

type flushBody struct {
	io.ReadCloser
	w    *flushWriter
	err  error       // of reading, other than the end
	read atomic.Bool // all of it
}

func (b *flushBody) Read(p []byte) (int, error) {
	if err := b.w.Flush(); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.read.Store(true)
	} else if err != nil {
		b.err = err
	}
	return n, err
}
