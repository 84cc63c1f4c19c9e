package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// counting starts a job that counts in /tmp/n and prints its pid.
const counting = `(i=0; while :; do i=$((i+1)); echo >> /tmp/n; sleep 0.05; done) >/dev/null 2>&1 & echo $!`

// grows says whether the job of that pid still counts.
func grows(pid string) string {
	return fmt.Sprintf(`kill -0 %s && a=$(wc -c < /tmp/n) && sleep 0.3 && b=$(wc -c < /tmp/n) && [ "$b" -gt "$a" ] && echo counts`, strings.TrimSpace(pid))
}

func TestPauseKeepsEverything(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := create(t, s, map[string]any{"envVars": map[string]string{"GREETING": "hello"}})
	pid := sh(t, s, b, "echo kept > /home/user/f; echo kept > /tmp/f; "+counting).Stdout

	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		t.Fatalf("pause: %v", err)
	}
	waitFor(t, 5*time.Second, "the box and the processes of a paused sandbox to be gone", func() bool {
		return boxes(t, s) == 0 && len(s.Processes(b.ID)) == 0
	})
	// Nobody can reach it, and a server that was killed still has it.
	if resp, err := s.Agent(t.Context(), b, http.MethodGet, "/health", "", nil); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("a paused sandbox answers %v, %v", resp, err)
	}
	s.Kill9()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, s, b.ID)
	got := sh(t, s, b, "cat /home/user/f /tmp/f; echo $GREETING; "+grows(pid))
	if want := "kept\nkept\nhello\ncounts\n"; got.Stdout != want {
		t.Errorf("after resume %q, want %q", got.Stdout, want)
	}
	if drift := sh(t, s, b, "date +%s").Stdout; drift != "" {
		var at int64
		if _, err := sscan(drift, &at); err != nil || time.Since(time.Unix(at, 0)).Abs() > 5*time.Second {
			t.Errorf("the clock is at %s (%v)", drift, err)
		}
	}
	if r := sh(t, s, b, "curl -sS -m 3 http://allowed.test/ 2>&1 || echo denied"); !strings.Contains(r.Stdout, "denied") {
		t.Errorf("egress after resume: %q", r.Stdout)
	}
	if err := s.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 5*time.Second, "the box to be gone", func() bool { return boxes(t, s) == 0 })
}

func connect(t *testing.T, s *testenv.Server, id string) {
	t.Helper()
	if err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+id+"/connect", map[string]any{"timeout": 300}, nil); err != nil {
		t.Fatalf("connect: %v", err)
	}
}

func TestPauseFilesOnly(t *testing.T) {
	t.Parallel()
	b := create(t, shared, map[string]any{"envVars": map[string]string{"GREETING": "hello"}})
	sh(t, shared, b, "echo kept > /home/user/f; "+counting)
	err := shared.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", map[string]any{"memory": false}, nil)
	if err != nil {
		t.Fatalf("pause: %v", err)
	}
	connect(t, shared, b.ID)
	got := sh(t, shared, b, "cat /home/user/f; echo $GREETING; ps -eo args | grep '[s]leep 0.05' || echo fresh")
	if want := "kept\nhello\nfresh\n"; got.Stdout != want {
		t.Errorf("after resume %q, want %q", got.Stdout, want)
	}
}

// Traffic wakes a sandbox that wants it, with its token and not without; many
// requests at once resume it once.
func TestTrafficWakes(t *testing.T) {
	t.Parallel()
	b := create(t, shared, map[string]any{"autoPause": true, "autoResume": map[string]any{"enabled": true}})
	pid := sh(t, shared, b, counting).Stdout
	if err := shared.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		t.Fatalf("pause: %v", err)
	}
	stranger := b
	stranger.Token = "wrong"
	resp, err := shared.Agent(t.Context(), stranger, http.MethodGet, "/health", "", nil)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a request without the token got %v, %v, want 403", resp, err)
	}
	var detail struct{ State string }
	if err := shared.API(t.Context(), http.MethodGet, "/sandboxes/"+b.ID, nil, &detail); err != nil || detail.State != "paused" {
		t.Fatalf("after that it is %s (%v), want paused", detail.State, err)
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if r := sh(t, shared, b, grows(pid)); r.Stdout != "counts\n" {
				t.Errorf("after waking: %+v", r)
			}
		})
	}
	wg.Wait()
}

// A sandbox that grows is paused and resumed fifty times; no file, no line and
// no process is lost, its clock is right and its job counts on.
func TestPauseCycles(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	pid := sh(t, shared, b, counting).Stdout
	const cycles = 50
	began := time.Now()
	counted := 0
	for i := range cycles {
		// Every file grows by a little, and there is one more.
		got := sh(t, shared, b, fmt.Sprintf("cd /home/user; head -c 200 /dev/urandom > more; [ ! -f r0 ] || tee -a r* < more > /dev/null; "+
			"head -c 2000 /dev/urandom > r%d; sha256sum r* > sums; echo %d >> log; wc -l < /tmp/n; date +%%s", i, i))
		var n int
		var at int64
		if _, err := sscan(got.Stdout, &n, &at); err != nil || n < counted || time.Since(time.Unix(at, 0)).Abs() > 5*time.Second {
			t.Fatalf("cycle %d: %+v, counted %d before (%v)", i, got, counted, err)
		}
		counted = n
		if err := shared.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
			t.Fatalf("pause %d: %v", i, err)
		}
		connect(t, shared, b.ID)
	}
	got := sh(t, shared, b, "cd /home/user && sha256sum -c --quiet sums && ls r* | wc -l && wc -l < log && wc -c < r0; "+grows(pid))
	if want := fmt.Sprintf("%d\n%d\n%d\ncounts\n", cycles, cycles, 2000+200*(cycles-1)); got.Stdout != want {
		t.Errorf("after %d cycles %+v, want %q", cycles, got, want)
	}
	t.Logf("%d cycles in %s", cycles, time.Since(began))
}

func TestPauseOnTimeout(t *testing.T) {
	t.Parallel()
	b := create(t, shared, map[string]any{"timeout": 2, "autoPause": true})
	sh(t, shared, b, "echo kept > /tmp/f")
	var detail struct{ State string }
	waitFor(t, 10*time.Second, "the sandbox to be paused", func() bool {
		err := shared.API(t.Context(), http.MethodGet, "/sandboxes/"+b.ID, nil, &detail)
		return err == nil && detail.State == "paused"
	})
	connect(t, shared, b.ID)
	if got := sh(t, shared, b, "cat /tmp/f"); got.Stdout != "kept\n" {
		t.Errorf("after resume %+v", got)
	}
}
