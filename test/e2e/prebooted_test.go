package e2e_test

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// prebootedServer keeps two boxes booted, of what was used, and none hot.
func prebootedServer(t *testing.T) *testenv.Server {
	t.Helper()
	return own(t, "--set", "pool.prebooted=2")
}

// prebooted waits until two boxes wait to be started.
func prebooted(t *testing.T, s *testenv.Server) {
	t.Helper()
	waitFor(t, 20*time.Second, "prebooted sandboxes", func() bool {
		got, err := s.Metric(t.Context(), "caisson_pool_prebooted")
		if err != nil {
			t.Fatal(err)
		}
		return got == 2
	})
}

// hits is how many starts have found a prebooted box.
func hits(t *testing.T, s *testenv.Server) float64 {
	t.Helper()
	n, err := s.Metric(t.Context(), `caisson_pool_prebooted_taken_total{result="hit"}`)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What is started in a prebooted box is what it would be in another: a create, a
// resume with its memory, the children of a fork.
func TestPrebooted(t *testing.T) {
	t.Parallel()
	s := prebootedServer(t)
	quick(t, s, create(t, s, nil)) // so that boxes are kept
	prebooted(t, s)
	b := create(t, s, map[string]any{"envVars": map[string]string{"WHO": "me"}})
	if got := hits(t, s); got != 1 {
		t.Fatalf("%v hits after a create, want 1", got)
	}
	tell := func(b testenv.Box) string {
		return sh(t, s, b, `hostname; echo $WHO $E2B_SANDBOX_ID; cat /etc/hostname /proc/sys/kernel/hostname; getent hosts $(hostname) | wc -l; nproc; ulimit -u`).Stdout
	}
	const limits = "1\n2\n512\n"
	if got, want := tell(b), b.ID+"\nme "+b.ID+"\n"+b.ID+"\n"+b.ID+"\n"+limits; got != want {
		t.Errorf("the sandbox says %q, want %q", got, want)
	}
	pid := sh(t, s, b, "echo kept > /home/user/f; echo kept > /tmp/f; head -c 64M /dev/urandom > /dev/shm/fill; "+counting).Stdout
	sum := sh(t, s, b, "sha256sum /dev/shm/fill").Stdout

	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		t.Fatalf("pause: %v", err)
	}
	prebooted(t, s)
	connect(t, s, b.ID)
	if got := hits(t, s); got != 2 {
		t.Errorf("%v hits after a resume, want 2", got)
	}
	if got, want := tell(b), b.ID+"\nme "+b.ID+"\n"+b.ID+"\n"+b.ID+"\n"+limits; got != want {
		t.Errorf("after the resume the sandbox says %q, want %q", got, want)
	}
	check := "sha256sum /dev/shm/fill; cat /home/user/f /tmp/f; " + grows(pid)
	if got, want := sh(t, s, b, check).Stdout, sum+"kept\nkept\ncounts\n"; got != want {
		t.Errorf("after the resume there is %q, want %q", got, want)
	}

	prebooted(t, s)
	for _, child := range fork(t, s, b.ID, 2) {
		if got, want := tell(child), child.ID+"\nme "+child.ID+"\n"+child.ID+"\n"+child.ID+"\n"+limits; got != want {
			t.Errorf("a child says %q, want %q", got, want)
		}
		if got, want := sh(t, s, child, check).Stdout, sum+"kept\nkept\ncounts\n"; got != want {
			t.Errorf("in a child there is %q, want %q", got, want)
		}
		if err := s.Kill(t.Context(), child); err != nil {
			t.Fatal(err)
		}
	}
	if got := hits(t, s); got != 4 {
		t.Errorf("%v hits after a fork, want 4", got)
	}
}

// Nothing of one that started in a prebooted box is in the next: each is used
// once, and its layer of files is its own.
func TestPrebootedIsUsedOnce(t *testing.T) {
	t.Parallel()
	s := prebootedServer(t)
	quick(t, s, create(t, s, nil))
	prebooted(t, s)
	for i := range 4 {
		prebooted(t, s)
		b := create(t, s, map[string]any{"envVars": map[string]string{"SECRET": "of one"}})
		got := sh(t, s, b, "ls -A /home/user/mine /tmp /dev/shm 2>/dev/null; ps -eo comm | grep -cx sleep; touch /home/user/mine /tmp/mine /dev/shm/mine; sleep 999 >/dev/null 2>&1 & :").Stdout
		if want := "/dev/shm:\n\n/tmp:\n0\n"; got != want {
			t.Errorf("a new sandbox has %q, want %q", got, want)
		}
		if n := hits(t, s); n != float64(i+1) {
			t.Errorf("%v hits after %d creates", n, i+1)
		}
		if err := s.Kill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

func runningBoxes(t *testing.T, s *testenv.Server) []string {
	t.Helper()
	boxes, err := filepath.Glob(filepath.Join(s.Data, "engine/engine/boxes/*"))
	if err != nil {
		t.Fatal(err)
	}
	return boxes
}

// Whatever becomes of the server or the engine, no prebooted box is left, and
// what was started in one is taken over or ended like any other.
func TestPrebootedAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := prebootedServer(t)
	quick(t, s, create(t, s, nil))
	prebooted(t, s)
	b := create(t, s, nil)
	prebooted(t, s)
	s.Kill9()
	waitFor(t, 10*time.Second, "the boxes of the killed server to go that wait", func() bool {
		return len(runningBoxes(t, s)) == 2 // the two sandboxes
	})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	quick(t, s, b)
	c := create(t, s, nil)
	prebooted(t, s)
	killEngine(t, s, true)
	d := create(t, s, nil) // whatever the pool has then
	quick(t, s, d)
	waitFor(t, 20*time.Second, "the sandboxes of the killed engine to be known as ended", func() bool {
		resp, err := s.Agent(t.Context(), c, http.MethodGet, "/health", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusBadGateway
	})
	if err := s.Kill(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if left := remains(t, s); len(left) > 0 {
		t.Errorf("after a stop there is %q", left)
	}
}
