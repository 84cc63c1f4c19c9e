package api

import (
	"io"
	"net/http"
	"time"
)

const (
	// uploadStall is how long an upload may send nothing.
	uploadStall = time.Minute
	// uploadRate is the least bytes a second of an upload on the whole: what it
	// announced is reserved for it until it has ended.
	uploadRate = 128 << 10
)

// Patient reads the body of an upload, and gives up on a client that stalls or
// is slower than 128 KiB/s on the whole. end must be called when the body is done with.
func Patient(w http.ResponseWriter, r *http.Request) (body io.Reader, end func()) {
	p := &patient{r: r.Body, c: http.NewResponseController(w), began: time.Now()}
	return p, p.end
}

type patient struct {
	r     io.Reader
	c     *http.ResponseController
	began time.Time
	n     int64
	until time.Time
}

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	if until := deadline(p.began, time.Now(), p.n); until.Sub(p.until).Abs() > uploadStall/4 {
		p.until = until
		_ = p.c.SetReadDeadline(p.until) // where there is no connection there is no stalling
	}
	n, err := p.r.Read(b)
	p.n += int64(n)
	if err != nil {
		p.end() // a deadline that passes while the handler works would end the request
	}
	return n, err
}

// deadline is until when the next bytes must come, of which there are n.
func deadline(began, now time.Time, n int64) time.Time {
	paced := began.Add(uploadStall + time.Duration(n/uploadRate)*time.Second)
	if stall := now.Add(uploadStall); stall.Before(paced) {
		return stall
	}
	return paced
}

func (p *patient) end() { _ = p.c.SetReadDeadline(time.Time{}) }
