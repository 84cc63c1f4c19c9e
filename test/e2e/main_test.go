// Package e2e_test drives a real server with real gVisor sandboxes: security
// controls, limits, crashes. Each control has a test that fails without it.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
	"github.com/caisson-dev/caisson/store/storetest"
)

// upstreamIP is where the tests' own upstream servers listen: a loopback
// address that nothing else uses.
const upstreamIP = "127.77.0.1"

const configYAML = `egress:
  default: deny
  hosts:
    allowed.test: 127.77.0.1
    other.test: 127.77.0.1
    sub.allowed.test: 127.77.0.1
    rebind.test: 10.1.2.3
    warm.test: 127.77.0.2
  allow_private: [127.77.0.1/32, 127.77.0.2/32]
rate:
  requests_per_second: 0
  creates_per_second: 0
`

// shared is one server for the tests that do not harm it.
var shared *testenv.Server

// cluster holds the servers' databases when CAISSON_TEST_DATABASE is "postgres".
// Each then is a copy of prepared, which goes with the data in preparedData.
var (
	cluster                *storetest.Cluster
	prepared, preparedData string
)

// prepare records the templates in a database of the cluster. Nothing of the
// SQLite database may be what makes a test pass.
func prepare(ctx context.Context, dir string) (err error) {
	preparedData = filepath.Join(dir, "prepared")
	if err := testenv.CopyData(os.Getenv("CAISSON_TEST_DATA"), preparedData); err != nil {
		return err
	}
	for _, name := range []string{"caisson.db", "snapshots"} {
		if err := os.RemoveAll(filepath.Join(preparedData, name)); err != nil {
			return err
		}
	}
	if prepared, err = cluster.NewDatabase(ctx, ""); err != nil {
		return err
	}
	for _, args := range [][]string{{"init"}, {"template", "build", "code-interpreter-v1"}, {"template", "build", "minimal"}} {
		cmd := exec.CommandContext(ctx, os.Getenv("CAISSON_TEST_BIN"), append(args, "--data", preparedData)...)
		cmd.Env = append(os.Environ(), "CAISSON_DATABASE="+prepared)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
		}
	}
	return nil
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 || os.Getenv("CAISSON_TEST_BIN") == "" || os.Getenv("CAISSON_TEST_DATA") == "" {
			fmt.Println("e2e: skipped: needs root, CAISSON_TEST_BIN (a built binary) and CAISSON_TEST_DATA (a data directory made by `caisson init`)")
			if os.Getenv("CI") != "" {
				return 1 // in CI a skip would hide everything
			}
			return 0
		}
		dir, err := os.MkdirTemp(filepath.Dir(os.Getenv("CAISSON_TEST_DATA")), "e2e-")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		if os.Getenv("CAISSON_TEST_DATABASE") == "postgres" {
			if cluster, err = storetest.StartPostgres(); err != nil {
				fmt.Println("e2e:", err)
				return 1
			}
			defer cluster.Stop()
			if err := prepare(context.Background(), dir); err != nil {
				fmt.Println("e2e:", err)
				return 1
			}
		}
		shared, err = start(context.Background(), dir)
		if err != nil {
			fmt.Println("e2e:", err)
			return 1
		}
		defer shared.Stop()
		return m.Run()
	}())
}

// given is the data directory that servers start with a copy of.
func given() string {
	if cluster != nil {
		return preparedData
	}
	return os.Getenv("CAISSON_TEST_DATA")
}

// start runs a server of its own below dir.
func start(ctx context.Context, dir string, args ...string) (*testenv.Server, error) {
	data := filepath.Join(dir, "data")
	if err := testenv.CopyData(given(), data); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "caisson.yaml")
	if err := os.WriteFile(conf, []byte(configYAML), 0o600); err != nil {
		return nil, err
	}
	var env []string
	if cluster != nil {
		dsn, err := cluster.NewDatabase(ctx, prepared)
		if err != nil {
			return nil, err
		}
		env = []string{"CAISSON_DATABASE=" + dsn}
	}
	return testenv.Start(ctx, testenv.Options{
		Binary: os.Getenv("CAISSON_TEST_BIN"), Data: data, Env: env,
		Args: append([]string{"--config", conf, "--destroy-on-exit"}, args...),
	})
}

// own starts a server for one test alone.
func own(t *testing.T, args ...string) *testenv.Server {
	t.Helper()
	// Hard links to the images need the same file system as the test data.
	dir, err := os.MkdirTemp(filepath.Dir(os.Getenv("CAISSON_TEST_DATA")), "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := start(t.Context(), dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func create(t *testing.T, s *testenv.Server, fields map[string]any) testenv.Box {
	t.Helper()
	b, err := s.Create(t.Context(), fields)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill(context.WithoutCancel(t.Context()), b) })
	return b
}

// createNative makes a sandbox with resource limits of its own.
func createNative(t *testing.T, s *testenv.Server, resources map[string]any) testenv.Box {
	t.Helper()
	var made struct{ ID string }
	err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes", map[string]any{"template": "base", "timeoutSeconds": 600, "resources": resources}, &made)
	if err != nil {
		t.Fatal(err)
	}
	var b testenv.Box
	if err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+made.ID+"/connect", map[string]any{}, &b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill(context.WithoutCancel(t.Context()), b) })
	return b
}

// sh runs a shell line as root and returns its output and exit code.
func sh(t *testing.T, s *testenv.Server, b testenv.Box, line string) testenv.Result {
	t.Helper()
	return shAs(t, s, b, "root", line)
}

func shAs(t *testing.T, s *testenv.Server, b testenv.Box, user, line string) testenv.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := s.ExecAs(ctx, b, user, "/bin/bash", "-c", line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return r
}

type native struct {
	State  string
	Reason string
}

// ended waits until the sandbox is no longer running and returns its record.
func ended(t *testing.T, s *testenv.Server, id string, within time.Duration) native {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		var n native
		if err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+id, nil, &n); err != nil {
			t.Fatal(err)
		}
		if n.State == "killed" || n.State == "failed" {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("sandbox is still %s after %s", n.State, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func status(err error) int {
	var se *testenv.StatusError
	if errors.As(err, &se) {
		return se.Status
	}
	return 0
}

func wantContains(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s = %q, want it to contain %q", what, got, w)
		}
	}
}
