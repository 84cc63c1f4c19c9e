package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// quick proves that another sandbox keeps answering while one misbehaves.
func quick(t *testing.T, s *testenv.Server, b testenv.Box) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if r, err := s.Exec(ctx, b, "/bin/echo", "alive"); err != nil || r.Stdout != "alive\n" {
		t.Errorf("neighbour's exec = %+v, %v", r, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	neighbour := create(t, shared, nil)
	b := createNative(t, shared, map[string]any{"memoryMiB": 256})
	r := sh(t, shared, b, "awk '/MemTotal/ {print $2}' /proc/meminfo")
	if r.Stdout != "262144\n" {
		t.Errorf("MemTotal = %q kB, want 262144", r.Stdout)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := shared.Exec(ctx, b, "/usr/bin/python3", "-c", "x = bytearray(600 << 20)\nprint(len(x))")
	if err == nil {
		t.Error("600 MiB were allocated in a sandbox of 256 MiB")
	}
	if n := ended(t, shared, b.ID, 5*time.Second); n.Reason != "oom" {
		t.Errorf("reason = %q, want oom", n.Reason)
	}
	quick(t, shared, neighbour)
}

func TestCPULimit(t *testing.T) {
	t.Parallel()
	b := createNative(t, shared, map[string]any{"cpus": 1})
	r := sh(t, shared, b, `nproc; python3 - <<'P'
import os, time
def spin():
    t = time.monotonic()
    while time.monotonic() - t < 4: pass
for _ in range(3):
    if os.fork() == 0:
        spin(); os._exit(0)
t = time.monotonic(); c = os.times()
for _ in range(3): os.wait()
e = os.times()
used = e.children_user + e.children_system - c.children_user - c.children_system
print('%.2f' % (used / (time.monotonic() - t)))
P`)
	var cpus int
	var share float64
	if _, err := sscan(r.Stdout, &cpus, &share); err != nil {
		t.Fatalf("output %q: %v", r.Stdout, err)
	}
	if cpus != 1 || share > 1.35 {
		t.Errorf("nproc %d, %.2f CPUs used by three busy loops, want 1 and about 1", cpus, share)
	}
}

func TestDiskLimit(t *testing.T) {
	t.Parallel()
	// The disk is larger than the memory, so that ENOSPC must come from the
	// overlay and not from the memory limit.
	b := createNative(t, shared, map[string]any{"diskMiB": 384, "memoryMiB": 256})
	r := sh(t, shared, b, "dd if=/dev/zero of=/home/user/fill bs=1M count=600 2>&1; stat -c %s /home/user/fill; rm /home/user/fill; echo still here")
	wantContains(t, "dd", r.Stdout, "No space left on device", "still here")
	quick(t, shared, b)
}

func TestForkBomb(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"user", "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			b := createNative(t, shared, map[string]any{"processes": 64})
			// Not exec'd through bash -c alone: the bomb itself holds the stream.
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			bomb := make(chan struct{})
			go func() {
				defer close(bomb)
				_, _ = shared.ExecAs(ctx, b, user, "/usr/bin/python3", "-c", `
import os, time
n = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
        n += 1
    except OSError:
        time.sleep(0.2)
`)
			}()
			waitFor(t, 10*time.Second, "the bomb to fill its limit", func() bool {
				r, err := shared.ExecAs(t.Context(), b, otherUser(user), "/bin/bash", "-c", "ls -d /proc/[0-9]* | wc -l")
				var n int
				if err != nil {
					return false
				}
				_, err = sscan(r.Stdout, &n)
				return err == nil && n >= 40 // its agent threads count, too
			})
			// The agent still serves other users and the file API, and the
			// count stays at the limit.
			r := shAs(t, shared, b, otherUser(user), "ls -d /proc/[0-9]* | wc -l")
			var n int
			if _, err := sscan(r.Stdout, &n); err != nil || n > 120 {
				t.Errorf("%q processes with a limit of 64", r.Stdout)
			}
			cancel()
			<-bomb
		})
	}
}

func otherUser(u string) string {
	if u == "root" {
		return "user"
	}
	return "root"
}

// Commands must not inherit what the agent does with signals.
func TestPipeSignal(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	res, err := shared.Exec(t.Context(), b, "/bin/bash", "-c", `yes | head -1; echo ${PIPESTATUS[0]}`)
	if err != nil || res.Stdout != "y\n141\n" {
		t.Errorf("got %q, %v; want yes to end by SIGPIPE", res.Stdout, err)
	}
}

func TestOutputFlood(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "limits.output_bytes=8MiB", "--set", "limits.wall_time=3s")
	b := create(t, s, nil)
	start := time.Now()
	r, err := s.Exec(t.Context(), b, "/usr/bin/yes")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Stdout) > 9<<20 || r.ExitCode == 0 {
		t.Errorf("yes wrote %d bytes and exited %d with a limit of 8 MiB", len(r.Stdout), r.ExitCode)
	}
	wantContains(t, "error", r.Error, "output")
	t.Run("wall time", func(t *testing.T) {
		start := time.Now()
		r, err := s.Exec(t.Context(), b, "/bin/bash", "-c", "sleep 60 & sleep 60")
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 30*time.Second || r.ExitCode == 0 {
			t.Errorf("ended after %s with exit %d, limit 3 s", took, r.ExitCode)
		}
		wantContains(t, "error", r.Error, "wall time")
		if left := sh(t, s, b, "pgrep -c sleep"); left.Stdout != "0\n" {
			t.Errorf("%q sleeps left", left.Stdout)
		}
	})
	if time.Since(start) > 30*time.Second {
		t.Error("too slow")
	}
	quick(t, s, b)
}

func TestOpenSandboxLimit(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "limits.sandboxes_per_team=2")
	create(t, s, nil)
	create(t, s, nil)
	_, err := s.Create(t.Context(), nil)
	if status(err) != 429 {
		t.Fatalf("third create = %v, want 429", err)
	}
	wantContains(t, "error", err.Error(), "2")
}
