package api

import (
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	// uploadStall is how long a client may send, or take, nothing.
	uploadStall = time.Minute
	// uploadRate is the least bytes a second on the whole: what an upload announced is
	// reserved for it until it has ended, and an export has one of few places.
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

// errSlow is the cause of an answer that was given up.
var errSlow = errors.New("the client takes too little")

// PatientWriter writes a large answer, and gives up on a client that takes nothing for
// a minute, or less than 128 KiB/s on the whole: only the time that it keeps the server
// waiting counts. Errors of a client are those that IsSlow is true for.
func PatientWriter(w http.ResponseWriter) (out io.Writer, end func()) {
	p := &pacedWriter{w: w, c: http.NewResponseController(w)}
	return p, p.end
}

// IsSlow says that a PatientWriter has not got rid of its bytes, as the client was too
// slow or had gone.
func IsSlow(err error) bool { return errors.Is(err, errSlow) }

type pacedWriter struct {
	w     io.Writer
	c     *http.ResponseController
	n     int64
	spent time.Duration // in waiting for the client
	until time.Time
}

// Write implements io.Writer.
func (p *pacedWriter) Write(b []byte) (int, error) {
	now := time.Now()
	// As if the client had been waited for all the time, without a pause.
	until := deadline(now.Add(-p.spent), now, p.n)
	if until.Sub(p.until).Abs() > uploadStall/4 || until.Before(now) {
		p.until = until
		_ = p.c.SetWriteDeadline(p.until) // where there is no connection there is no stalling
	}
	n, err := p.w.Write(b)
	p.n += int64(n)
	p.spent += time.Since(now)
	if err != nil {
		err = errors.Join(errSlow, err)
	}
	return n, err
}

func (p *pacedWriter) end() { _ = p.c.SetWriteDeadline(time.Time{}) }
