package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// field returns a kB value of a /proc file such as meminfo or status.
func field(path, name string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), name+":"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

func benchIdle(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Idle sandboxes", fmt.Sprintf("%d sandboxes of `base`, each having run one command, left alone for 10 s. Memory of one: fall of the host's MemAvailable, divided.", o.idle))
	before, err := field("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	var all []testenv.Box
	defer func() {
		for _, b := range all {
			_ = s.Kill(context.WithoutCancel(ctx), b)
		}
	}()
	for range o.idle {
		b, err := s.Create(ctx, nil)
		if err != nil {
			return err
		}
		all = append(all, b)
		if _, err := s.Exec(ctx, b, "/bin/true"); err != nil {
			return err
		}
	}
	time.Sleep(10 * time.Second)
	after, err := field("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	rss, err := field(fmt.Sprintf("/proc/%d/status", s.PID()), "VmRSS")
	if err != nil {
		return err
	}
	each := float64(before-after) / 1024 / float64(o.idle)
	r.table("what", "MB")
	r.row("one idle sandbox", fmt.Sprintf("%.1f", each))
	r.row(fmt.Sprintf("server RSS with %d", o.idle), fmt.Sprintf("%.0f", float64(rss)/1024))
	r.check("idle sandbox", each <= 15, fmt.Sprintf("%.1f MB", each), "≤ 15 MB")
	r.check("server RSS", rss <= 160*1024, fmt.Sprintf("%.0f MB", float64(rss)/1024), "≤ 160 MB")
	return nil
}

func benchLeaks(ctx context.Context, o options, s *testenv.Server, r *report) error {
	r.section("Leaks", fmt.Sprintf("%d cycles of create, one command, kill; counts before and after, 5 s apart from the last kill.", o.cycles))
	cycle := func() error {
		b, err := s.Create(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := s.Exec(ctx, b, "/bin/true"); err != nil {
			return err
		}
		return s.Kill(ctx, b)
	}
	for range 20 {
		if err := cycle(); err != nil {
			return err
		}
	}
	time.Sleep(5 * time.Second)
	before, err := s.Count(ctx)
	if err != nil {
		return err
	}
	for range o.cycles {
		if err := cycle(); err != nil {
			return err
		}
	}
	time.Sleep(5 * time.Second)
	after, err := s.Count(ctx)
	if err != nil {
		return err
	}
	r.table("", "processes", "server fds", "engine fds", "memfds", "mounts", "cgroups", "network namespaces", "files", "goroutines", "server MB")
	for _, row := range []struct {
		name string
		c    testenv.Census
	}{{"before", before}, {"after", after}} {
		cells := []string{row.name}
		for _, n := range []int{
			row.c.Processes, row.c.ServerFDs, row.c.EngineFDs, row.c.MemFDs, row.c.Mounts, row.c.Cgroups,
			row.c.NetNamespaces, row.c.Files, row.c.Goroutines, row.c.ServerMB,
		} {
			cells = append(cells, fmt.Sprint(n))
		}
		r.row(cells...)
	}
	grown := before.Grown(after)
	r.check("leaks", len(grown) == 0, cmp.Or(strings.Join(grown, "; "), "none"), "none")
	return nil
}
