package e2e_test

import (
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// warmServer keeps two sandboxes warm.
func warmServer(t *testing.T) *testenv.Server {
	t.Helper()
	s := own(t, "--set", "pool.templates=base=2")
	warm(t, s, 2)
	return s
}

func warm(t *testing.T, s *testenv.Server, n float64) {
	t.Helper()
	waitFor(t, 20*time.Second, "warm sandboxes", func() bool {
		got, err := s.Metric(t.Context(), "caisson_pool_sandboxes")
		if err != nil {
			t.Fatal(err)
		}
		return got == n
	})
}

// A sandbox from the pool is like any other: nothing of another, its own
// identity, its own network policy.
func TestWarmSandbox(t *testing.T) {
	t.Parallel()
	s := warmServer(t)
	cold := create(t, shared, map[string]any{"envVars": map[string]string{"WHO": "me"}})
	var seen []string
	for range 4 { // two of the pool at once, and refilled ones
		b := create(t, s, map[string]any{"envVars": map[string]string{"WHO": "me"}, "metadata": map[string]string{"k": "v"}})
		// Itself, and otherwise the same as one that was not kept warm.
		tell := func(on *testenv.Server, b testenv.Box) string {
			r := sh(t, on, b, `hostname; echo $WHO $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX_ID; echo; env | sort; ls -lA --time-style=+ ~ /tmp /run /var/log; getent hosts $(hostname); ulimit -a; ps -eo args`)
			if !strings.HasPrefix(r.Stdout, b.ID+"\nme "+b.ID+"\n"+b.ID+"\n") || r.ExitCode != 0 {
				t.Errorf("sandbox %s says %q %q", b.ID, r.Stdout, r.Stderr)
			}
			return strings.ReplaceAll(r.Stdout, b.ID, "ID")
		}
		if d := cmp.Diff(tell(shared, cold), tell(s, b)); d != "" {
			t.Errorf("a warm sandbox differs (-cold +warm):\n%s", d)
		}
		// The same files as in one that was not kept warm.
		files := func(on *testenv.Server, b testenv.Box) string {
			r := sh(t, on, b, `find / -xdev \( -path /proc -o -path /sys -o -path /dev \) -prune -o -newer /etc/hostname -type f -print 2>/dev/null | sort`)
			return r.Stdout
		}
		if a, b := files(s, b), files(shared, cold); a != b {
			t.Errorf("files of a warm sandbox %q, of another %q", a, b)
		}
		seen = append(seen, b.ID)
		if err := s.Kill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(seen)
	if len(slices.Compact(seen)) != 4 {
		t.Errorf("ids %v: one was handed out twice", seen)
	}
	if hits, err := s.Metric(t.Context(), `caisson_pool_taken_total{result="hit"}`); err != nil || hits < 3 {
		t.Errorf("%v hits, %v: the sandboxes did not come from the pool", hits, err)
	}
}

// Whatever becomes of the server, no warm sandbox outlives it for long, and a
// stop leaves none.
func TestWarmSandboxesAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := warmServer(t)
	b := create(t, s, nil)
	quick(t, s, b)
	s.Kill9()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	quick(t, s, b)
	warm(t, s, 2)
	waitFor(t, 20*time.Second, "the warm sandboxes of the killed server to go", func() bool {
		boxes, err := filepath.Glob(filepath.Join(s.Data, "engine/engine/boxes/*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(boxes) == 3
	})
	if err := s.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if left := remains(t, s); len(left) > 0 {
		t.Errorf("after a stop there is %q", left)
	}
}

// The engine dies with the warm sandboxes in it: a create just after works. One
// that was served before the server could learn of it is lost and says so.
func TestWarmPoolSurvivesEngine(t *testing.T) {
	t.Parallel()
	s := warmServer(t)
	killEngine(t, s, true)
	b := create(t, s, nil)
	if r, err := s.Exec(t.Context(), b, "/bin/echo", "alive"); err != nil || r.Stdout != "alive\n" {
		if n := ended(t, s, b.ID, 10*time.Second); n.Reason != "engine_lost" {
			t.Errorf("exec = %+v, %v, and the sandbox ended as %q", r, err, n.Reason)
		}
		quick(t, s, create(t, s, nil))
	}
	warm(t, s, 2)
}

// Which network a warm sandbox has is decided when it is taken, by its create
// alone.
func TestWarmSandboxNetwork(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.77.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("upstream"))
	})}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(l) }()

	s := warmServer(t)
	may := create(t, s, map[string]any{"network": map[string]any{"allowOut": []string{"warm.test"}}})
	mayNot := create(t, s, nil)
	const get = "curl -sS -m 10 http://warm.test/ 2>&1"
	if got := sh(t, s, may, get); got.Stdout != "upstream" {
		t.Errorf("the sandbox that may reach it got %q", got.Stdout)
	}
	if got := sh(t, s, mayNot, get); got.ExitCode == 0 {
		t.Errorf("the sandbox that may not reach it got %q", got.Stdout)
	}
	var flows []struct{ Host, Verdict string }
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+mayNot.ID+"/egress", nil, &flows); err != nil {
		t.Fatal(err)
	}
	if len(flows) == 0 || flows[0].Host != "warm.test" || flows[0].Verdict != "deny" {
		t.Errorf("its log says %+v", flows)
	}
	if hits, err := s.Metric(t.Context(), `caisson_pool_taken_total{result="hit"}`); err != nil || hits != 2 {
		t.Errorf("%v hits, %v: the sandboxes did not come from the pool", hits, err)
	}
}
