package testenv

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Box is a sandbox as its creator knows it.
type Box struct {
	ID    string `json:"sandboxID"`
	Token string `json:"envdAccessToken"`
	// TrafficToken is empty unless some port of the sandbox wants it.
	TrafficToken string `json:"trafficAccessToken"`
}

// StatusError is an answer outside 2xx.
type StatusError struct {
	Status int
	Body   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Body) }

// API calls the control plane with the server's first key.
func (s *Server) API(ctx context.Context, method, path string, body, into any) error {
	return s.APIAs(ctx, s.Key, method, path, body, into)
}

// APIAs calls the control plane with another key.
func (s *Server) APIAs(ctx context.Context, key, method, path string, body, into any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, rd)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &StatusError{Status: resp.StatusCode, Body: string(b)}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// Create makes a sandbox of the base template; fields are added to the body.
func (s *Server) Create(ctx context.Context, fields map[string]any) (Box, error) {
	body := map[string]any{"templateID": "base", "timeout": 600}
	for k, v := range fields {
		body[k] = v
	}
	var b Box
	err := s.API(ctx, http.MethodPost, "/v2/sandboxes", body, &b)
	return b, err
}

// Kill ends a sandbox.
func (s *Server) Kill(ctx context.Context, b Box) error {
	return s.API(ctx, http.MethodDelete, "/sandboxes/"+b.ID, nil, nil)
}

// Agent sends one request to the sandbox's agent through the data plane.
func (s *Server) Agent(ctx context.Context, b Box, method, path, contentType string, body io.Reader) (*http.Response, error) {
	return s.Port(ctx, b, 49983, method, path, contentType, body)
}

// Port sends one request to a port of the sandbox through the data plane.
func (s *Server) Port(ctx context.Context, b Box, port int, method, path, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("E2b-Sandbox-Id", b.ID)
	req.Header.Set("E2b-Sandbox-Port", fmt.Sprint(port))
	req.Header.Set("X-Access-Token", b.Token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return s.http.Do(req)
}

// Result is what a command left.
type Result struct {
	Stdout, Stderr string
	ExitCode       int
	// Error is the end event's text; empty for exit 0.
	Error string
	// First is the time from the request to the first output.
	First time.Duration
}

// Exec runs argv as the default user and collects its output.
func (s *Server) Exec(ctx context.Context, b Box, argv ...string) (Result, error) {
	return s.ExecAs(ctx, b, "", argv...)
}

// ExecAs runs argv as user.
func (s *Server) ExecAs(ctx context.Context, b Box, user string, argv ...string) (Result, error) {
	start := time.Now()
	msg, err := json.Marshal(map[string]any{"process": map[string]any{"cmd": argv[0], "args": argv[1:]}, "stdin": false})
	if err != nil {
		return Result{}, err
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/process.Process/Start", bytes.NewReader(frame))
	if err != nil {
		return Result{}, err
	}
	req.Header.Set("E2b-Sandbox-Id", b.ID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", b.Token)
	req.Header.Set("Content-Type", "application/connect+json")
	if user != "" {
		req.SetBasicAuth(user, "")
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return Result{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t, _ := io.ReadAll(resp.Body)
		return Result{}, &StatusError{Status: resp.StatusCode, Body: string(t)}
	}
	return readStream(resp.Body, start)
}

type processEvent struct {
	Event struct {
		Data *struct{ Stdout, Stderr []byte }
		End  *struct {
			ExitCode int
			Error    string
		}
	}
}

func readStream(body io.Reader, start time.Time) (Result, error) {
	var (
		r        Result
		out, err strings.Builder
		ended    bool
	)
	for {
		flag, payload, rerr := readFrame(body)
		if rerr != nil {
			return r, rerr
		}
		if flag&2 != 0 {
			r.Stdout, r.Stderr = out.String(), err.String()
			if !ended {
				return r, fmt.Errorf("stream ended early: %s", payload)
			}
			_, rerr = io.Copy(io.Discard, body) // so that the connection is kept
			return r, rerr
		}
		var ev processEvent
		if jerr := json.Unmarshal(payload, &ev); jerr != nil {
			return r, jerr
		}
		if d := ev.Event.Data; d != nil {
			if r.First == 0 {
				r.First = time.Since(start)
			}
			out.Write(d.Stdout)
			err.Write(d.Stderr)
		}
		if e := ev.Event.End; e != nil {
			ended, r.ExitCode, r.Error = true, e.ExitCode, e.Error
		}
	}
}

func readFrame(body io.Reader) (flag byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(body, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > 16<<20 {
		return 0, nil, errors.New("frame over 16 MiB")
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(body, payload)
	return head[0], payload, err
}
