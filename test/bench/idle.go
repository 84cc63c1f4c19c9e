package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
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

// census counts what a leak would raise.
type census struct{ Processes, FDs, Mounts, Cgroups, Boxes, Goroutines int }

func count(s *testenv.Server) (census, error) {
	var c census
	procs, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return c, err
	}
	for _, p := range procs {
		// A process can end between the listing and the read.
		if b, err := os.ReadFile(p); err == nil && (strings.HasPrefix(string(b), "runsc") || strings.HasPrefix(string(b), "caisson") || strings.HasPrefix(string(b), "exe")) {
			c.Processes++
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	if err != nil {
		return c, err
	}
	c.FDs = len(fds)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return c, err
	}
	c.Mounts = strings.Count(string(mounts), "\n")
	// Directories, not /proc/cgroups: the kernel keeps a removed memory cgroup
	// counted there until the last page that was charged to it is reclaimed.
	err = filepath.WalkDir("/sys/fs/cgroup", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			c.Cgroups++
		}
		return nil // a directory may go while it is walked
	})
	if err != nil {
		return c, err
	}
	boxes, err := s.BoxFiles()
	if err != nil {
		return c, err
	}
	c.Boxes = len(boxes)
	c.Goroutines, err = goroutines(s)
	return c, err
}

func goroutines(s *testenv.Server) (int, error) {
	resp, err := http.Get(s.URL + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "go_goroutines "); ok {
			return strconv.Atoi(v)
		}
	}
	return 0, fmt.Errorf("/metrics has no go_goroutines")
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
	before, err := count(s)
	if err != nil {
		return err
	}
	for range o.cycles {
		if err := cycle(); err != nil {
			return err
		}
	}
	time.Sleep(5 * time.Second)
	after, err := count(s)
	if err != nil {
		return err
	}
	r.table("", "processes", "server fds", "mounts", "cgroups", "box files", "goroutines")
	for _, row := range []struct {
		name string
		c    census
	}{{"before", before}, {"after", after}} {
		r.row(row.name, fmt.Sprint(row.c.Processes), fmt.Sprint(row.c.FDs), fmt.Sprint(row.c.Mounts), fmt.Sprint(row.c.Cgroups), fmt.Sprint(row.c.Boxes), fmt.Sprint(row.c.Goroutines))
	}
	// A keep-alive connection more or less is two goroutines and one fd.
	ok := after.Processes <= before.Processes && after.FDs <= before.FDs+2 && after.Mounts <= before.Mounts &&
		after.Cgroups <= before.Cgroups && after.Boxes <= before.Boxes && after.Goroutines <= before.Goroutines+4
	r.check("leaks", ok, "see the table", "as before")
	return nil
}
