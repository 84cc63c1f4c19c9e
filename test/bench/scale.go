package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// benchFork measures copies of a running sandbox that holds 46 MB of memory.
func benchFork(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Fork", "`POST /sandboxes/{id}/fork` of one running sandbox whose processes have filled 40 MiB with random bytes; all children run when the call returns. Median of several calls.")
	src, err := s.Create(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Kill(context.WithoutCancel(ctx), src) }()
	if err := fillMemory(ctx, s, src, 40); err != nil {
		return err
	}
	r.table("children", "succeeded", "call, median", "per child")
	for _, n := range []int{1, 4, 16, 64} {
		var took sample
		made := 0
		rounds := max(min(o.rounds/3, 32/n), 2)
		for range rounds {
			start := time.Now()
			ok, err := forkOnce(ctx, s, src, n)
			took = append(took, time.Since(start)-ok.killing)
			if err != nil {
				return err
			}
			made += ok.made
		}
		each := took.median() / time.Duration(n)
		r.row(fmt.Sprint(n), fmt.Sprintf("%d of %d", made, n*rounds), ms(took.median()), ms(each))
		switch n {
		case 1:
			r.check("fork, one child, median", each <= 150*time.Millisecond, ms(each)+" ms", "≤ 150 ms")
		case 64:
			r.check("fork, 64 children, per child", each <= 150*time.Millisecond && made == n*rounds, fmt.Sprintf("%s ms, %d of %d", ms(each), made, n*rounds), "≤ 150 ms, all")
		}
	}
	return nil
}

type forked struct {
	made    int
	killing time.Duration
}

func forkOnce(ctx context.Context, s *testenv.Server, src testenv.Box, n int) (forked, error) {
	var children []struct {
		Sandbox testenv.Box
		Error   *struct{ Message string }
	}
	if err := s.API(ctx, "POST", "/sandboxes/"+src.ID+"/fork", map[string]any{"count": n, "timeout": 600}, &children); err != nil {
		return forked{}, err
	}
	start := time.Now()
	var f forked
	var errs []error
	for _, c := range children {
		if c.Error != nil {
			continue
		}
		f.made++
		errs = append(errs, s.Kill(ctx, c.Sandbox))
	}
	f.killing = time.Since(start)
	return f, errors.Join(errs...)
}

// fillMemory fills shared memory, which is part of what is saved.
func fillMemory(ctx context.Context, s *testenv.Server, b testenv.Box, mib int) error {
	res, err := s.Exec(ctx, b, "/bin/sh", "-c", fmt.Sprintf("head -c %dM /dev/urandom > /dev/shm/fill", mib))
	if err != nil || res.ExitCode != 0 {
		return fmt.Errorf("fill memory: %s %w", strings.TrimSpace(res.Stderr), err)
	}
	return nil
}

// benchDensity creates sandboxes until so many live at once, and measures
// creates on the way.
func benchDensity(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Density", fmt.Sprintf("Sandboxes of `base` that stay; at each step %d more are created, have one command run (`true`) and are killed again. "+
		"Memory of one: fall of the host's MemAvailable since the first, divided.", createSamples))
	before, err := field("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	var live []testenv.Box
	defer func() {
		for _, b := range live {
			_ = s.Kill(context.WithoutCancel(ctx), b)
		}
	}()
	r.table("live sandboxes", "create, median", "p95", "create and first output, median", "MB per sandbox")
	var first sample
	for _, n := range []int{1, 50, 100, 200, 300, 400, o.density} {
		if n > o.density {
			continue
		}
		for len(live) < n {
			b, err := s.Create(ctx, map[string]any{"timeout": 3600})
			if err != nil {
				return fmt.Errorf("sandbox %d: %w", len(live)+1, err)
			}
			live = append(live, b)
		}
		time.Sleep(2 * time.Second)
		now, err := field("/proc/meminfo", "MemAvailable")
		if err != nil {
			return err
		}
		creates, firsts, err := createFew(ctx, s)
		if err != nil {
			return err
		}
		if first == nil {
			first = creates
		}
		r.row(fmt.Sprint(len(live)), ms(creates.median()), ms(creates.quantile(.95)), ms(firsts.median()), fmt.Sprintf("%.1f", float64(before-now)/1024/float64(len(live))))
		if n == o.density {
			ratio := float64(creates.median()) / float64(first.median())
			r.check(fmt.Sprintf("create with %d live against 1", n), ratio <= 1.3, fmt.Sprintf("%.2f×", ratio), "≤ 1.3×")
		}
	}
	answering := 0
	for _, b := range live {
		if res, err := s.Exec(ctx, b, "/bin/true"); err == nil && res.ExitCode == 0 {
			answering++
		}
	}
	r.check("sandboxes live at once, each answering a command", answering == o.density, fmt.Sprint(answering), fmt.Sprint(o.density))
	return nil
}

const createSamples = 20

func createFew(ctx context.Context, s *testenv.Server) (creates, firsts sample, err error) {
	for range createSamples {
		start := time.Now()
		b, err := s.Create(ctx, nil)
		if err != nil {
			return nil, nil, err
		}
		took := time.Since(start)
		res, err := s.Exec(ctx, b, "/bin/echo", "hi")
		if err != nil {
			return nil, nil, err
		}
		creates, firsts = append(creates, took), append(firsts, took+res.First)
		if err := s.Kill(ctx, b); err != nil {
			return nil, nil, err
		}
	}
	return creates, firsts, nil
}

// idler is a sandbox that nobody talks to while everything else is measured.
type idler struct {
	box   testenv.Box
	since time.Time
	warm  sample
}

// idleTime is how long it is left alone.
const idleTime = 6 * time.Minute

func newIdler(ctx context.Context, s *testenv.Server) (*idler, error) {
	b, err := s.Create(ctx, map[string]any{"timeout": 3600})
	if err != nil {
		return nil, err
	}
	i := &idler{box: b}
	for range 10 {
		res, err := s.Exec(ctx, b, "/bin/echo", "hi")
		if err != nil {
			return nil, err
		}
		i.warm = append(i.warm, res.First)
	}
	i.since = time.Now()
	return i, nil
}

// wake measures the first command after the idle time.
func (i *idler) wake(ctx context.Context, s *testenv.Server, r *report) error {
	r.section("A command after idling", "`echo hi` in a sandbox that nobody has talked to for 6 minutes or more, while the rows above were measured; raw HTTP, time to the first output.")
	select {
	case <-time.After(time.Until(i.since.Add(idleTime))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	idle := time.Since(i.since)
	res, err := s.Exec(ctx, i.box, "/bin/echo", "hi")
	if err != nil {
		return err
	}
	r.table("idle for", "first command", "before, median of 10")
	r.row(idle.Round(time.Second).String(), ms(res.First), ms(i.warm.median()))
	return s.Kill(ctx, i.box)
}
