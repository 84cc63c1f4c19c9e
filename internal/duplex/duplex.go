// Package duplex lets an HTTP/1.1 handler answer while it still reads the body
// of its request, as a proxy must: without it the server closes the body at the
// first byte of the answer, and a transport that is still at it gives up the
// connection and the rest of the answer.
package duplex

import (
	"io"
	"net/http"
	"sync/atomic"
)

// Request follows the body of one request.
type Request struct {
	ended atomic.Bool
}

// Enable turns full duplex on for a request of HTTP/1 that has a body; others
// have it or need not. It replaces r.Body.
func Enable(w http.ResponseWriter, r *http.Request) *Request {
	d := new(Request)
	if r.ProtoMajor != 1 || r.ContentLength == 0 || http.NewResponseController(w).EnableFullDuplex() != nil {
		d.ended.Store(true)
		return d
	}
	r.Body = &body{r.Body, d}
	return d
}

// Answer is called with the headers of the answer before they are written. When
// the body has not been read to its end by then, the connection must end with
// the answer: if the end is read after the handler's return, by a transport or
// by the server's own look for the next request, net/http panics with
// "invalid concurrent Body.Read call" and the next request on the connection,
// which may be under way, is lost.
func (d *Request) Answer(h http.Header) {
	if !d.ended.Load() {
		h.Set("Connection", "close")
	}
}

// body notes that its end was read. By then the server has begun to watch the
// connection for the next request.
type body struct {
	io.ReadCloser

	request *Request
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { //nolint:errorlint // io.Reader returns EOF itself
		b.request.ended.Store(true)
	}
	return n, err
}
