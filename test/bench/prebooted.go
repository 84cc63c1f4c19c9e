package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// tierSize is how many prebooted boxes the one server keeps; the other keeps none.
const tierSize = 4

// tierServer is a server with or without the second tier of the pool.
type tierServer struct {
	*testenv.Server

	name   string
	booted int
	took   map[string]sample
}

// ready waits until the tier is full.
func (s *tierServer) ready(ctx context.Context) error {
	return reached(ctx, s.Server, "caisson_pool_prebooted", s.booted)
}

// benchPrebooted measures what starts a box, without and with prebooted ones.
func benchPrebooted(ctx context.Context, o options, r *report) error {
	r.section("Prebooted sandboxes", fmt.Sprintf("Two servers in interleaved rounds, without hot sandboxes: one with `pool.prebooted` 0, one with %d, full before each step. "+
		"Raw HTTP. Create and resume: until the first output of `echo hi`. Memory was filled with random bytes; a fork is of a sandbox with 46 MiB, its time divided by the children.", tierSize))
	var servers []*tierServer
	// A data directory is for one server.
	second, err := os.MkdirTemp(filepath.Dir(filepath.Clean(o.data)), "bench-second-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(second)
	if err := testenv.CopyData(o.data, second); err != nil {
		return err
	}
	for n, data := range map[int]string{0: o.data, tierSize: second} {
		o.data = data
		s, err := benchServer(ctx, o, 0, fmt.Sprintf("CAISSON_POOL_PREBOOTED=%d", n))
		if err != nil {
			return err
		}
		defer s.Stop()
		servers = append(servers, &tierServer{Server: s, name: fmt.Sprint(n), booted: n, took: map[string]sample{}})
	}
	slices.SortFunc(servers, func(a, b *tierServer) int { return a.booted - b.booted })
	for i := range max(o.rounds/3, 3) + 1 {
		for _, s := range servers {
			if i == 0 { // so that the tier is kept from now on
				if err := s.round(ctx, func(string, time.Duration) {}, false); err != nil {
					return err
				}
				continue
			}
			if err := s.round(ctx, func(what string, d time.Duration) { s.took[what] = append(s.took[what], d) }, true); err != nil {
				return err
			}
		}
	}
	r.table("what", "prebooted", "min", "median", "p95")
	for _, what := range tierSteps() {
		for _, s := range servers {
			m := s.took[what]
			r.row(what, s.name, ms(m.quantile(0)), ms(m.median()), ms(m.quantile(.95)))
		}
	}
	with := servers[1].took
	for _, c := range []struct {
		what  string
		limit time.Duration
	}{{stepCreate, 60 * time.Millisecond}, {stepPause, 250 * time.Millisecond}, {stepResume, 250 * time.Millisecond}, {stepFork1, 150 * time.Millisecond}, {stepFork4, 150 * time.Millisecond}} {
		m := with[c.what].median()
		r.check(c.what+", median", m <= c.limit, ms(m)+" ms", "≤ "+fmt.Sprint(c.limit.Milliseconds())+" ms")
	}
	return nil
}

// The steps of a round.
const (
	stepCreate = "create"
	stepPause  = "pause, 200 MiB"
	stepResume = "resume, 200 MiB"
	stepEmpty  = "resume, nothing in memory"
	stepFork1  = "fork of 1"
	stepFork4  = "fork of 4, each"
)

func tierSteps() []string {
	return []string{stepCreate, stepEmpty, stepPause, stepResume, stepFork1, stepFork4}
}

// round takes every step once; full says whether the tier must be full before.
func (s *tierServer) round(ctx context.Context, note func(string, time.Duration), full bool) error {
	ready := func() error {
		if !full {
			return nil
		}
		return s.ready(ctx)
	}
	if err := ready(); err != nil {
		return err
	}
	start := time.Now()
	b, err := s.Create(ctx, nil)
	if err != nil {
		return err
	}
	created := time.Since(start)
	res, err := s.Exec(ctx, b, "/bin/echo", "hi")
	note(stepCreate, created+res.First)
	if err := errors.Join(err, s.Kill(ctx, b)); err != nil {
		return err
	}
	for mib, steps := range map[int][2]string{0: {"", stepEmpty}, 200: {stepPause, stepResume}} {
		if err := ready(); err != nil {
			return err
		}
		p, w, err := pauseOnce(ctx, s.Server, mib, ready)
		if err != nil {
			return err
		}
		note(steps[0], p)
		note(steps[1], w)
	}
	return s.forks(ctx, note, ready)
}

func (s *tierServer) forks(ctx context.Context, note func(string, time.Duration), ready func() error) (err error) {
	b, err := s.Create(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Kill(ctx, b)) }()
	res, err := s.Exec(ctx, b, "/bin/sh", "-c", "head -c 46M /dev/urandom > /dev/shm/fill")
	if err != nil || res.ExitCode != 0 {
		return fmt.Errorf("fill memory: %s %w", strings.TrimSpace(res.Stderr), err)
	}
	for _, f := range []struct {
		n    int
		step string
	}{{1, stepFork1}, {4, stepFork4}} {
		if err := ready(); err != nil {
			return err
		}
		var children []struct {
			Sandbox *testenv.Box `json:"sandbox"`
		}
		start := time.Now()
		if err := s.API(ctx, "POST", "/sandboxes/"+b.ID+"/fork", map[string]any{"count": f.n, "timeout": 60}, &children); err != nil {
			return err
		}
		note(f.step, time.Since(start)/time.Duration(f.n))
		for _, c := range children {
			if c.Sandbox == nil {
				return errors.New("a child was not made")
			}
			if err := s.Kill(ctx, *c.Sandbox); err != nil {
				return err
			}
		}
	}
	return nil
}
