package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// contender starts something that prints one line and returns the time until
// that line arrived.
type contender struct {
	name string
	run  func(ctx context.Context) (time.Duration, error)
}

// firstLine starts a program and waits for the first line of its output.
func firstLine(ctx context.Context, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	took := time.Since(start)
	_, _ = io.Copy(io.Discard, out)
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err == nil && line != "hi\n" {
		err = fmt.Errorf("%s printed %q", name, line)
	}
	return took, err
}

func contenders(ctx context.Context, o options, s *testenv.Server, dock *docker, r *report) []contender {
	all := []contender{
		{"fork+exec on the host", func(ctx context.Context) (time.Duration, error) { return firstLine(ctx, "/bin/echo", "hi") }},
	}
	if o.rootfs != "" {
		if _, err := exec.LookPath("bwrap"); err == nil {
			all = append(all, contender{"bubblewrap", func(ctx context.Context) (time.Duration, error) {
				return firstLine(ctx, "bwrap", "--ro-bind", o.rootfs, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all", "/bin/echo", "hi")
			}})
		} else {
			r.note("bubblewrap is not installed: left out")
		}
		if bundle, err := runcBundle(o.rootfs); err == nil {
			n := 0
			all = append(all, contender{"runc", func(ctx context.Context) (time.Duration, error) {
				n++
				return firstLine(ctx, "runc", "run", "--bundle", bundle, fmt.Sprintf("caisson-bench-%d-%d", os.Getpid(), n))
			}})
		} else {
			r.note("runc: left out: " + err.Error())
		}
	}
	if dock != nil {
		all = append(all, contender{"Docker (docker run --rm, " + dock.network + ")", func(ctx context.Context) (time.Duration, error) {
			return firstLine(ctx, "docker", dock.args("run", "--rm", "--network", dock.networkArg, dock.image, "/bin/echo", "hi")...)
		}})
	}
	return append(all, contender{"Caisson, cold", func(ctx context.Context) (time.Duration, error) {
		start := time.Now()
		b, err := s.Create(ctx, nil)
		if err != nil {
			return 0, err
		}
		created := time.Since(start)
		res, err := s.Exec(ctx, b, "/bin/echo", "hi")
		if err == nil && res.Stdout != "hi\n" {
			err = fmt.Errorf("printed %q", res.Stdout)
		}
		return created + res.First, errors.Join(err, s.Kill(ctx, b))
	}})
}

func benchStart(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Start to first output", "A new sandbox (or process, container) each time, running `/bin/echo hi`; time until the first output byte is in the caller's hands. "+
		"Caisson: raw HTTP, `POST /v2/sandboxes` then `process.Process/Start`, no warm pool.")
	dock, err := startDocker(ctx, o)
	if err != nil {
		r.note("Docker: left out: " + err.Error())
	}
	defer dock.stop()
	all := contenders(ctx, o, s, dock, r)
	samples := make([]sample, len(all))
	for i := range o.rounds + 2 { // two rounds to warm caches
		for j, c := range all {
			d, err := c.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if i >= 2 {
				samples[j] = append(samples[j], d)
			}
		}
	}
	r.table("what", "min", "median", "p95", "against Caisson's median")
	ours := samples[len(samples)-1].median()
	for j, c := range all {
		m := samples[j]
		r.row(c.name, ms(m.quantile(0)), ms(m.median()), ms(m.quantile(0.95)), fmt.Sprintf("%.2f×", float64(m.median())/float64(ours)))
	}
	r.check("cold create to first output, median", ours <= 130*time.Millisecond, ms(ours)+" ms", "≤ 130 ms")
	if dock != nil {
		ratio := float64(samples[len(samples)-2].median()) / float64(ours)
		r.check("Docker's median over ours", ratio >= 1.5, fmt.Sprintf("%.2f×", ratio), "≥ 1.5×")
	}
	return nil
}

func (r *report) note(text string) {
	fmt.Fprintf(&r.b, "%s.\n\n", text)
	fmt.Fprintln(os.Stderr, "   "+text)
}

// runcBundle writes an OCI bundle that prints one line.
func runcBundle(rootfs string) (string, error) {
	if _, err := exec.LookPath("runc"); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "caisson-bench-runc-")
	if err != nil {
		return "", err
	}
	spec := exec.Command("runc", "spec")
	spec.Dir = dir
	if out, err := spec.CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc spec: %w: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var c map[string]any
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", err
	}
	process, _ := c["process"].(map[string]any)
	if process == nil {
		return "", errors.New("runc spec without a process")
	}
	process["args"] = []string{"/bin/echo", "hi"}
	process["terminal"] = false
	c["root"] = map[string]any{"path": rootfs, "readonly": true}
	if raw, err = json.Marshal(c); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return "", err
	}
	// A host whose cgroups runc cannot use is a reason to leave it out.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = firstLine(ctx, "runc", "run", "--bundle", dir, fmt.Sprintf("caisson-bench-%d-probe", os.Getpid()))
	return dir, err
}
