package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// benchServer starts a server that keeps hot sandboxes warm, and no more unless
// env says so.
func benchServer(ctx context.Context, o options, hot int, env ...string) (*testenv.Server, error) {
	return testenv.Start(ctx, testenv.Options{
		Binary: o.binary, Data: o.data, Args: []string{"--destroy-on-exit"},
		// What is measured is the engine, not the guards against a flood.
		Env: append([]string{
			"CAISSON_LIMITS_SANDBOXES_PER_TEAM=1000", "CAISSON_RATE_REQUESTS_PER_SECOND=0", "CAISSON_RATE_CREATES_PER_SECOND=0",
			fmt.Sprintf("CAISSON_POOL_TEMPLATES=base=%d", hot), "CAISSON_POOL_DEMAND=0", "CAISSON_POOL_PREBOOTED=0",
		}, env...),
	})
}

// filled waits until the pool has its target.
func filled(ctx context.Context, s *testenv.Server, hot int) error {
	err := reached(ctx, s, "caisson_pool_sandboxes", hot)
	time.Sleep(time.Second) // the machine is quiet again
	return err
}

// reached waits until a metric of the pool is at least n.
func reached(ctx context.Context, s *testenv.Server, metric string, least int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		n, err := s.Metric(ctx, metric)
		if err != nil {
			return err
		}
		if int(n) >= least {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the pool has %d of %d: %w", int(n), least, context.Cause(ctx))
		}
	}
}

// benchWarm measures creates that find a warm sandbox.
func benchWarm(ctx context.Context, o options, r *report) error {
	r.section("Time to interactive with a warm pool", "`Sandbox.create()` and the first command, `echo hi`, through the unmodified JavaScript SDK on loopback; "+
		"100 sandboxes each: one after the other, one every 200 ms, and all at once. The pool is full before, and refills while it is measured.")
	if o.sdk == "" {
		r.note("The SDK is not installed: left out")
		return nil
	}
	r.table("pool", "mode", "succeeded", "median", "p95", "p99", "create, median")
	if err := leastModes(ctx, o, r); err != nil {
		return err
	}
	for _, hot := range []int{128, 16} {
		if err := warmModes(ctx, o, hot, r); err != nil {
			return err
		}
	}
	return nil
}

// leastModes is what the SDK itself takes.
func leastModes(ctx context.Context, o options, r *report) error {
	const n = 100
	floor, stop, err := floorServer()
	if err != nil {
		return err
	}
	defer stop()
	for _, mode := range []string{"sequential", "burst"} {
		v, err := timeToInteractive(ctx, o, floor, mode, n)
		if err != nil {
			return err
		}
		tti, create := samples(v.TTI), samples(v.Create)
		r.row("none: a server that answers at once and runs nothing", mode, fmt.Sprintf("%d of %d", len(tti), n), ms(tti.median()), ms(tti.quantile(.95)), ms(tti.quantile(.99)), ms(create.median()))
	}
	return nil
}

func warmModes(ctx context.Context, o options, hot int, r *report) error {
	const n = 100
	s, err := benchServer(ctx, o, hot)
	if err != nil {
		return err
	}
	defer s.Stop()
	for _, mode := range []string{"sequential", "staggered", "burst"} {
		if err := filled(ctx, s, hot); err != nil {
			return err
		}
		v, err := timeToInteractive(ctx, o, s, mode, n)
		if err != nil {
			return err
		}
		tti, create := samples(v.TTI), samples(v.Create)
		r.row(fmt.Sprint(hot), mode, fmt.Sprintf("%d of %d", len(tti), n), ms(tti.median()), ms(tti.quantile(.95)), ms(tti.quantile(.99)), ms(create.median()))
		for _, e := range v.Errors[:min(len(v.Errors), 3)] {
			r.note("failed: " + e)
		}
		switch {
		case hot == 128 && mode == "sequential":
			r.check("sequential, warm, median", tti.median() <= 20*time.Millisecond, ms(tti.median())+" ms", "≤ 20 ms")
			r.check("sequential, warm, p99", tti.quantile(.99) <= 60*time.Millisecond, ms(tti.quantile(.99))+" ms", "≤ 60 ms")
		case hot == 128 && mode == "burst":
			r.check("burst of 100 with 128 warm, median", tti.median() <= 400*time.Millisecond && len(tti) == n, fmt.Sprintf("%s ms, %d of %d", ms(tti.median()), len(tti), n), "≤ 400 ms, all")
		case mode == "burst":
			r.check("burst of 100 with 16 warm", len(tti) == n, fmt.Sprintf("%d of %d", len(tti), n), "none fails")
		}
	}
	return nil
}

type interactive struct {
	Create, TTI []float64 // milliseconds
	Errors      []string
}

func timeToInteractive(ctx context.Context, o options, s *testenv.Server, mode string, n int) (v interactive, err error) {
	script, err := filepath.Abs("test/bench/tti.mjs")
	if err != nil {
		return v, err
	}
	cmd := exec.CommandContext(ctx, "node", script, mode, fmt.Sprint(n))
	cmd.Dir = o.sdk
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "E2B_API_KEY="+s.Key, "E2B_API_URL="+s.URL, "E2B_SANDBOX_URL="+s.URL, "CAISSON_BENCH_SDK="+o.sdk)
	out, err := cmd.Output()
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(out, &v)
}

func samples(msecs []float64) sample {
	var s sample
	for _, m := range msecs {
		s = append(s, time.Duration(m*float64(time.Millisecond)))
	}
	return s
}

// benchPause measures pause and resume of sandboxes of several sizes, without a
// pool.
func benchPause(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Pause and resume", "Raw HTTP; resume is `connect` and a first command, `echo hi`. The sandbox has filled as much memory with random bytes.")
	r.table("memory filled", "pause, median", "p95", "resume and first output, median", "p95")
	for _, mib := range []int{0, 200} {
		var pauses, resumes sample
		for range max(o.rounds/3, 3) {
			p, w, err := pauseOnce(ctx, s, mib, func() error { return nil })
			if err != nil {
				return err
			}
			pauses, resumes = append(pauses, p), append(resumes, w)
		}
		r.row(fmt.Sprintf("%d MiB", mib), ms(pauses.median()), ms(pauses.quantile(.95)), ms(resumes.median()), ms(resumes.quantile(.95)))
	}
	return nil
}

// pauseOnce pauses and resumes; before is called before either.
func pauseOnce(ctx context.Context, s *testenv.Server, mib int, before func() error) (pause, resume time.Duration, err error) {
	b, err := s.Create(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Kill(ctx, b)) }()
	if mib > 0 {
		if err := fillMemory(ctx, s, b, mib); err != nil {
			return 0, 0, err
		}
	}
	if err := before(); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := s.API(ctx, "POST", "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		return 0, 0, err
	}
	pause = time.Since(start)
	if err := before(); err != nil {
		return 0, 0, err
	}
	start = time.Now()
	if err := s.API(ctx, "POST", "/sandboxes/"+b.ID+"/connect", map[string]any{"timeout": 60}, nil); err != nil {
		return 0, 0, err
	}
	connected := time.Since(start)
	res, err := s.Exec(ctx, b, "/bin/echo", "hi")
	return pause, connected + res.First, err
}
