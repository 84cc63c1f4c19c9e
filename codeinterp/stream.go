package codeinterp

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// quiet is after how long without output a line says that the cell still runs.
const quiet = 5 * time.Second

// stream writes the answer to one execution: a line of JSON for each event.
type stream struct {
	w    http.ResponseWriter
	ctrl *http.ResponseController

	mu     sync.Mutex // guards what follows, and the writing
	begun  bool
	failed bool // the client is gone; the rest is dropped
	last   time.Time
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{w: w, ctrl: http.NewResponseController(w), last: time.Now()}
}

// lines of an answer; members that are nil are left out.
type (
	countLine struct {
		Type  string `json:"type"`
		Count int    `json:"execution_count"`
	}
	outputLine struct {
		Type string `json:"type"`
		Text string `json:"text"`
		At   string `json:"timestamp"`
	}
	errorLine struct {
		Type      string `json:"type"`
		Name      string `json:"name"`
		Value     string `json:"value"`
		Traceback string `json:"traceback"`
	}
	bareLine struct {
		Type string `json:"type"`
	}
)

// event writes what a kernel sent.
func (s *stream) event(e kernel.Event) {
	switch e.Kind {
	case kernel.Count:
		s.line(countLine{"number_of_executions", e.Count})
	case kernel.Stdout:
		s.line(outputLine{"stdout", e.Text, e.At.UTC().Format("2006-01-02T15:04:05.000000+00:00")})
	case kernel.Stderr:
		s.line(outputLine{"stderr", e.Text, e.At.UTC().Format("2006-01-02T15:04:05.000000+00:00")})
	case kernel.Result:
		s.line(resultLine(e))
	case kernel.Error:
		s.line(errorLine{"error", e.Name, e.Value, e.Traceback})
	}
}

func (s *stream) end() { s.line(bareLine{"end_of_execution"}) }

func (s *stream) line(v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed {
		return
	}
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.w.WriteHeader(http.StatusOK)
	}
	enc := json.NewEncoder(s.w)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil || s.ctrl.Flush() != nil {
		s.failed = true
	}
	s.last = time.Now()
}

// keepAlive writes a line whenever nothing else was written for some time,
// until stop is closed.
func (s *stream) keepAlive(stop <-chan struct{}) {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		s.mu.Lock()
		wait := quiet - time.Since(s.last)
		s.mu.Unlock()
		if wait <= 0 {
			s.line(bareLine{"keepalive"})
			wait = quiet
		}
		timer.Reset(wait)
	}
}

// wrote says whether the answer has begun.
func (s *stream) wrote() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}
