package e2e_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// boxes counts the sandboxes that have something on the host.
func boxes(t *testing.T, s *testenv.Server) int {
	t.Helper()
	files, err := s.BoxFiles()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, f := range files {
		ids[strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "runsc-"), ".sock")] = true
	}
	return len(ids)
}

func listed(t *testing.T, s *testenv.Server) int {
	t.Helper()
	var l []map[string]any
	if err := s.API(t.Context(), http.MethodGet, "/v2/sandboxes?state=running", nil, &l); err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func TestSandboxesSurviveServerKill(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := create(t, s, map[string]any{"metadata": map[string]string{"k": "v"}, "envVars": map[string]string{"GREETING": "hello"}})
	before := sh(t, s, b, "(sleep 1000 >/dev/null 2>&1 & echo $! > /tmp/pid); cat /tmp/pid; echo kept > /home/user/f")
	s.Kill9()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := sh(t, s, b, "cat /tmp/pid; kill -0 $(cat /tmp/pid) && cat /home/user/f; echo $GREETING")
	if want := before.Stdout + "kept\nhello\n"; after.Stdout != want {
		t.Errorf("after the restart %q, want %q", after.Stdout, want)
	}
	// Network policy came back with the sandbox: nothing is reachable.
	if r := sh(t, s, b, "curl -sS -m 3 http://allowed.test/ 2>&1 || echo denied"); !strings.Contains(r.Stdout, "denied") {
		t.Errorf("egress after the restart: %q", r.Stdout)
	}
	if err := s.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 5*time.Second, "the box to be gone", func() bool { return boxes(t, s) == 0 })
}

func TestServerKillDuringCreates(t *testing.T) {
	t.Parallel()
	s := own(t)
	for _, pause := range []time.Duration{5 * time.Millisecond, 40 * time.Millisecond, 90 * time.Millisecond, 160 * time.Millisecond} {
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			acked []testenv.Box
		)
		for range 4 {
			wg.Go(func() {
				if b, err := s.Create(context.WithoutCancel(t.Context()), nil); err == nil {
					mu.Lock()
					acked = append(acked, b)
					mu.Unlock()
				}
			})
		}
		time.Sleep(pause) // the moment of the crash is the point here
		s.Kill9()
		wg.Wait()
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, b := range acked {
			if r, err := s.Exec(t.Context(), b, "/bin/echo", "alive"); err != nil || r.Stdout != "alive\n" {
				t.Errorf("an acknowledged sandbox after the crash: %+v, %v", r, err)
			}
		}
		defer func() {
			if t.Failed() {
				left, err := s.BoxFiles()
				t.Logf("left: %v, %v", left, err)
				for _, f := range left {
					id := filepath.Base(f)
					for _, log := range []string{"server.log", "engine/engine/engine.log", "engine/engine/boxes/" + id + "/box.json"} {
						b, _ := os.ReadFile(filepath.Join(s.Data, log))
						for line := range strings.Lines(string(b)) {
							if strings.Contains(line, id) {
								t.Logf("%s: %s", log, line)
							}
						}
					}
				}
			}
		}()
		waitFor(t, 15*time.Second, "orphans to be swept", func() bool { return boxes(t, s) == listed(t, s) })
		var all []testenv.Box
		if err := s.API(t.Context(), http.MethodGet, "/v2/sandboxes", nil, &all); err != nil {
			t.Fatal(err)
		}
		for _, b := range all {
			if err := s.Kill(t.Context(), b); err != nil {
				t.Error(err)
			}
		}
	}
	waitFor(t, 10*time.Second, "nothing to be left", func() bool { return boxes(t, s) == 0 && len(s.Processes("/boxes/")) == 0 })
}

func TestEngineKill(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := create(t, s, nil)
	daemons := s.Processes("daemon")
	if len(daemons) == 0 {
		t.Fatal("no engine found")
	}
	for _, pid := range daemons {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if n := ended(t, s, b.ID, 15*time.Second); n.Reason != "engine_lost" {
		t.Errorf("reason = %q, want engine_lost", n.Reason)
	}
	var made testenv.Box
	waitFor(t, 20*time.Second, "creates to work again", func() bool {
		var err error
		made, err = s.Create(t.Context(), nil)
		return err == nil
	})
	quick(t, s, made)
	if err := s.Kill(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 10*time.Second, "no box to be left", func() bool { return boxes(t, s) == 0 && len(s.Processes("/boxes/")) == 0 })
}

func TestTimeToLive(t *testing.T) {
	t.Parallel()
	s := own(t)
	start := time.Now()
	b := create(t, s, map[string]any{"timeout": 2})
	n := ended(t, s, b.ID, 10*time.Second)
	if took := time.Since(start); n.Reason != "timeout" || took < 1900*time.Millisecond {
		t.Errorf("ended after %s with reason %q, want 2 s and timeout", took, n.Reason)
	}
	// The deadline holds while the server is down, too.
	b = create(t, s, map[string]any{"timeout": 2})
	s.Kill9()
	time.Sleep(3 * time.Second)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ended(t, s, b.ID, 5*time.Second); n.Reason != "timeout" {
		t.Errorf("reason = %q, want timeout", n.Reason)
	}
	waitFor(t, 5*time.Second, "its files to go", func() bool { return boxes(t, s) == 0 })
}

// A command must not hang when its sandbox dies under it.
func TestKillBreaksStreams(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	done := make(chan error, 1)
	go func() {
		_, err := shared.Exec(context.WithoutCancel(t.Context()), b, "/bin/sleep", "60")
		done <- err
	}()
	waitFor(t, 5*time.Second, "the command to run", func() bool {
		r, err := shared.Exec(t.Context(), b, "/usr/bin/pgrep", "sleep")
		return err == nil && r.Stdout != ""
	})
	if err := shared.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("stream ended as if the command had")
		}
	case <-time.After(20 * time.Second): // the command takes 60
		t.Fatal("the command hangs although its sandbox is gone")
	}
}
