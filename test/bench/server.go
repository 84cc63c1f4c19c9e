package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// server is one `caisson serve` under test, spoken to in raw HTTP.
type server struct {
	cmd  *exec.Cmd
	data string
	url  string
	key  string
	http *http.Client
}

func startServer(ctx context.Context, o options) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(o.data, "bench-server.log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(o.binary, "serve", "--data", o.data, "--listen", addr, "--destroy-on-exit")
	cmd.Env = append(os.Environ(), "CAISSON_LIMITS_SANDBOXES_PER_TEAM=1000", "CAISSON_RATE_CREATE=100000", "CAISSON_RATE_REQUESTS=100000")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, data: o.data, url: "http://" + addr, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}}
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := s.http.Get(s.url + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			s.stop()
			return nil, fmt.Errorf("server did not become healthy; see %s", logFile.Name())
		}
		time.Sleep(20 * time.Millisecond)
	}
	key, err := os.ReadFile(filepath.Join(o.data, "api-key"))
	if err != nil {
		s.stop()
		return nil, err
	}
	s.key = strings.TrimSpace(string(key))
	return s, nil
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
}

type box struct {
	ID    string `json:"sandboxID"`
	Token string `json:"envdAccessToken"`
}

func (s *server) api(ctx context.Context, method, path string, body, into any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, rd)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", s.key)
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
		return fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

func (s *server) create(ctx context.Context) (box, error) {
	var b box
	err := s.api(ctx, http.MethodPost, "/v2/sandboxes", map[string]any{"templateID": "base", "timeout": 3600}, &b)
	return b, err
}

func (s *server) kill(ctx context.Context, b box) error {
	return s.api(ctx, http.MethodDelete, "/sandboxes/"+b.ID, nil, nil)
}

func (s *server) agent(ctx context.Context, b box, method, path, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("E2b-Sandbox-Id", b.ID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", b.Token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return s.http.Do(req)
}

// exec runs argv and returns the time to its first output and its output.
func (s *server) exec(ctx context.Context, b box, argv ...string) (first time.Duration, out string, err error) {
	start := time.Now()
	msg, err := json.Marshal(map[string]any{"process": map[string]any{"cmd": argv[0], "args": argv[1:]}, "stdin": false})
	if err != nil {
		return 0, "", err
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg)))
	resp, err := s.agent(ctx, b, http.MethodPost, "/process.Process/Start", "application/connect+json", bytes.NewReader(append(frame, msg...)))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t, _ := io.ReadAll(resp.Body)
		return 0, "", fmt.Errorf("start: %d %s", resp.StatusCode, t)
	}
	var sb strings.Builder
	ended := false
	for {
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
			if errors.Is(err, io.EOF) && ended {
				return first, sb.String(), nil
			}
			return 0, "", err
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(resp.Body, payload); err != nil {
			return 0, "", err
		}
		if head[0]&2 != 0 {
			if !ended {
				return 0, "", fmt.Errorf("stream ended early: %s", payload)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			return first, sb.String(), nil
		}
		var ev struct {
			Event struct {
				Data *struct{ Stdout, Stderr string }
				End  *struct{ ExitCode int }
			}
		}
		if err := json.Unmarshal(payload, &ev); err != nil {
			return 0, "", err
		}
		switch {
		case ev.Event.Data != nil:
			if first == 0 {
				first = time.Since(start)
			}
			text, err := base64.StdEncoding.DecodeString(ev.Event.Data.Stdout)
			if err != nil {
				return 0, "", err
			}
			sb.Write(text)
		case ev.Event.End != nil:
			ended = true
		}
	}
}
