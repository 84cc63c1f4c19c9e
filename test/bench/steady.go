package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

func benchExec(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("A command in a running sandbox", "Raw HTTP on a kept-alive connection; the whole stream until its end frame. The host's column is fork+exec of the same program there.")
	b, err := s.Create(ctx, nil)
	if err != nil {
		return err
	}
	cases := [][]string{{"/bin/true"}, {"/bin/bash", "-l", "-c", "true"}, {"/usr/bin/python3", "-c", "print(1)"}, {"/usr/bin/node", "-e", "console.log(1)"}}
	r.table("command", "min", "median", "p95", "host median")
	for _, argv := range cases {
		var in, host sample
		for i := range o.rounds + 3 {
			start := time.Now()
			if _, err := s.Exec(ctx, b, argv...); err != nil {
				return err
			}
			took := time.Since(start)
			start = time.Now()
			// A login shell reads the host's own profile, which says nothing.
			login := slices.Contains(argv, "-l")
			hostOK := !login && exec.CommandContext(ctx, argv[0], argv[1:]...).Run() == nil
			if i >= 3 {
				in = append(in, took)
				if hostOK {
					host = append(host, time.Since(start))
				}
			}
		}
		r.row(fmt.Sprintf("`%v`", argv), ms(in.quantile(0)), ms(in.median()), ms(in.quantile(0.95)), ms(host.median()))
	}
	// What the same program costs when something inside the sandbox starts it:
	// the engine's share of the figures above.
	res, err := s.Exec(ctx, b, "/usr/bin/python3", "-c", `
import os, time
t = []
for _ in range(60):
    a = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
    t.append(time.perf_counter() - a)
t.sort()
print("%.1f %.1f" % (t[0] * 1e3, t[30] * 1e3))`)
	if err != nil {
		return err
	}
	low, mid, _ := strings.Cut(strings.TrimSpace(res.Stdout), " ")
	r.row("`posix_spawn` of `/bin/true` by a process inside", low, mid, "", "")
	return s.Kill(ctx, b)
}

// benchSDK runs a program on the published JavaScript SDK and reads its JSON.
func benchSDK(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Through the JavaScript SDK", "The unmodified published `e2b` package on loopback: `commands.run('true')` in one sandbox, n=200.")
	if o.sdk == "" {
		r.note("The SDK is not installed: left out")
		return nil
	}
	floor, stop, err := floorServer()
	if err != nil {
		return err
	}
	defer stop()
	r.table("what", "min", "median", "p95")
	f := func(x float64) string { return fmt.Sprintf("%.1f", x) }
	least, err := throughSDK(ctx, o, floor)
	if err != nil {
		return err
	}
	v, err := throughSDK(ctx, o, s)
	if err != nil {
		return err
	}
	r.row("`commands.run('true')`, e2b "+v.Version, f(v.ExecMin), f(v.ExecMedian), f(v.ExecP95))
	r.row("the same from a server that answers at once and runs nothing", f(least.ExecMin), f(least.ExecMedian), f(least.ExecP95))
	r.row("`Sandbox.create()` + first command, cold, n=20", "", f(v.TTI), "")
	r.row("the same from a server that answers at once", "", f(least.TTI), "")
	r.check("exec `true` through the SDK, median", v.ExecMedian <= 8, f(v.ExecMedian)+" ms", "≤ 8 ms")
	return nil
}

// throughTheSDK is what sdk.mjs prints, in milliseconds.
type throughTheSDK struct {
	Version                           string
	ExecMin, ExecMedian, ExecP95, TTI float64
}

func throughSDK(ctx context.Context, o options, s *testenv.Server) (v throughTheSDK, err error) {
	script, err := filepath.Abs("test/bench/sdk.mjs")
	if err != nil {
		return v, err
	}
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Dir = o.sdk
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "E2B_API_KEY="+s.Key, "E2B_API_URL="+s.URL, "E2B_SANDBOX_URL="+s.URL, "CAISSON_BENCH_SDK="+o.sdk)
	out, err := cmd.Output()
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(out, &v)
}

type repeated struct{ n int64 }

func (z *repeated) Read(p []byte) (int, error) {
	if z.n <= 0 {
		return 0, io.EOF
	}
	k := min(int64(len(p)), z.n)
	for i := range p[:k] {
		p[i] = byte(i * 31)
	}
	z.n -= k
	return int(k), nil
}

func benchFiles(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Files", "`POST` and `GET /files` over raw HTTP; small files: time of one request, large: throughput of one stream.")
	b, err := s.Create(ctx, nil)
	if err != nil {
		return err
	}
	r.table("size", "up, median", "down, median", "unit")
	var downMB float64
	for _, c := range []struct {
		name   string
		size   int64
		rounds int
	}{{"1 kB", 1000, o.rounds}, {"100 MB", 100_000_000, 7}} {
		var up, down sample
		for range c.rounds {
			start := time.Now()
			resp, err := s.Agent(ctx, b, http.MethodPost, "/files?path=/home/user/bench.bin&username=user", "application/octet-stream", &repeated{c.size})
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("upload: %d %s %w", resp.StatusCode, text, err)
			}
			up = append(up, time.Since(start))
			start = time.Now()
			if resp, err = s.Agent(ctx, b, http.MethodGet, "/files?path=/home/user/bench.bin&username=user", "", nil); err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || n != c.size {
				return fmt.Errorf("download: %d of %d bytes: %w", n, c.size, err)
			}
			down = append(down, time.Since(start))
		}
		if c.size < 1_000_000 {
			r.row(c.name, ms(up.median()), ms(down.median()), "ms")
			continue
		}
		rate := func(d time.Duration) float64 { return float64(c.size) / 1e6 / d.Seconds() }
		downMB = rate(down.median())
		r.row(c.name, fmt.Sprintf("%.0f", rate(up.median())), fmt.Sprintf("%.0f", downMB), "MB/s")
	}
	r.check("file download", downMB >= 300, fmt.Sprintf("%.0f MB/s", downMB), "≥ 300 MB/s")
	return s.Kill(ctx, b)
}

func benchRate(ctx context.Context, _ options, s *testenv.Server, r *report) error {
	r.section("Creates per second", "Create and kill, no warm pool.")
	r.table("concurrency", "creates/s", "median create", "p95")
	for _, workers := range []int{1, 8} {
		var (
			mu   sync.Mutex
			all  sample
			errs []error
			wg   sync.WaitGroup
		)
		start := time.Now()
		const each = 40
		for range workers {
			wg.Go(func() {
				for range each / workers {
					t := time.Now()
					b, err := s.Create(ctx, nil)
					took := time.Since(t)
					if err == nil {
						err = s.Kill(ctx, b)
					}
					mu.Lock()
					all = append(all, took)
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		r.row(fmt.Sprint(workers), fmt.Sprintf("%.1f", float64(len(all))/time.Since(start).Seconds()), ms(all.median()), ms(all.quantile(0.95)))
	}
	return nil
}
