// Package testenv runs a real `caisson serve` for tests and benchmarks and
// speaks to it in raw HTTP, as a client without an SDK would. Nothing but tests
// and benchmarks imports it.
package testenv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Options say which server to run.
type Options struct {
	// Binary is the caisson program.
	Binary string
	// Data is a data directory that `caisson init` prepared. It is used in
	// place; see CopyData.
	Data string
	// Args are further flags of `caisson serve`.
	Args []string
	// Env are further variables, KEY=VALUE. The server keeps no sandboxes warm
	// unless they say so.
	Env []string
}

// Server is one `caisson serve`.
type Server struct {
	URL  string
	Key  string
	Data string
	// Addr is the listening address.
	Addr string

	opts Options
	cmd  *exec.Cmd
	http *http.Client
}

// Start runs a server on a free loopback port and returns when it is healthy.
func Start(ctx context.Context, o Options) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	s := &Server{
		URL: "http://" + addr, Addr: addr, Data: o.Data, opts: o,
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}},
	}
	return s, s.Restart(ctx)
}

// Restart starts the server process again, after Kill9 or Stop, on the same
// address and data.
func (s *Server) Restart(ctx context.Context) error {
	logFile, err := os.OpenFile(s.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	s.cmd = exec.Command(s.opts.Binary, append([]string{"serve", "--data", s.Data, "--listen", s.Addr}, s.opts.Args...)...)
	// Without warm sandboxes what is on the host is what a test has made.
	s.cmd.Env = append(os.Environ(), "CAISSON_POOL_TEMPLATES=base=0", "CAISSON_POOL_DEMAND=0", "CAISSON_POOL_PREBOOTED=0")
	s.cmd.Env = append(s.cmd.Env, s.opts.Env...)
	s.cmd.Stdout, s.cmd.Stderr = logFile, logFile
	if err := s.cmd.Start(); err != nil {
		return err
	}
	if err := s.waitHealthy(ctx); err != nil {
		s.Stop()
		return fmt.Errorf("%w; log: %s", err, s.logTail())
	}
	key, err := os.ReadFile(filepath.Join(s.Data, "api-key"))
	if err != nil {
		s.Stop()
		return err
	}
	s.Key = strings.TrimSpace(string(key))
	return nil
}

func (s *Server) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("server did not become healthy in 30s"))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := s.http.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Metric returns the value of a metric without labels.
func (s *Server) Metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(text, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("there is no metric %s", name), lines.Err())
}

// PID is the process id of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// LogPath is where the server's output goes.
func (s *Server) LogPath() string { return filepath.Join(s.Data, "server.log") }

func (s *Server) logTail() string {
	b, err := os.ReadFile(s.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// Stop asks the server to end and waits for it.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
	s.http.CloseIdleConnections()
}

// Kill9 ends the server process without a chance to clean up.
func (s *Server) Kill9() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.http.CloseIdleConnections()
}

// CopyData makes a data directory at dst with the templates of src. Images and
// saved memory, which nobody writes to, are hard-linked, so that a copy costs nothing; everything else is copied, but
// for the run files of a server.
func CopyData(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir() && rel == filepath.Join("engine", "engine"):
			return fs.SkipDir
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return err
			}
			return os.MkdirAll(to, info.Mode().Perm())
		case !d.Type().IsRegular() || strings.HasSuffix(path, ".log"):
			return nil
		case strings.HasSuffix(path, ".erofs"), strings.HasPrefix(rel, "snapshots"+string(filepath.Separator)):
			return os.Link(path, to)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, info.Mode().Perm())
	})
}

// BoxFiles lists what exists on the host for sandboxes: records, control
// sockets, writable layers.
func (s *Server) BoxFiles() ([]string, error) {
	var all []string
	for _, pattern := range []string{"engine/engine/boxes/*", "engine/engine/ctl/*", "engine/layers/*"} {
		found, err := filepath.Glob(filepath.Join(s.Data, pattern))
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// Command is the program under test, with the server's configuration.
func (s *Server) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.opts.Binary, args...)
	cmd.Env = append(os.Environ(), s.opts.Env...)
	return cmd
}
