package cgroup_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/engine/cgroup"
)

// real returns a manager on the host's hierarchies, or skips.
func real(t *testing.T) *cgroup.Manager {
	t.Helper()
	m := cgroup.Detect(cgroup.Mount, "caisson-test-"+strconv.Itoa(os.Getpid()))
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	if !m.Memory() || !m.CPU() {
		t.Skip("control groups are not writable here")
	}
	return m
}

func TestGroupOnThisHost(t *testing.T) {
	m := real(t)
	g, err := m.Create("box", cgroup.Limits{MemoryBytes: 100 << 20, CPUs: 2})
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	if _, err := m.Create("box", cgroup.Limits{}); err == nil {
		t.Error("Create(same id) succeeded")
	}
	var limits []string
	for _, d := range g.Dirs() {
		for _, f := range []string{"memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max"} {
			if b, err := os.ReadFile(filepath.Join(d, f)); err == nil {
				limits = append(limits, strings.TrimSpace(string(b)))
			}
		}
	}
	for _, want := range []string{strconv.Itoa(100 << 20), "200000"} {
		if !strings.Contains(strings.Join(limits, " "), want) {
			t.Errorf("limits read back = %v, want %s among them", limits, want)
		}
	}
	if s := g.Stats(); s.Processes != 0 || s.MemoryMaxBytes != 100<<20 {
		t.Errorf("Stats() of an empty group = %+v", s)
	}
	if err := g.Remove(); err != nil {
		t.Errorf("Remove() = %v", err)
	}
	for _, d := range g.Dirs() {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s exists after Remove", d)
		}
	}
	if err := g.Remove(); err != nil {
		t.Errorf("second Remove() = %v", err)
	}
}

func TestOOMWatchEndsWithItsGroup(t *testing.T) {
	m := real(t)
	g, err := m.Create("watched", cgroup.Limits{MemoryBytes: 100 << 20})
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	w, err := g.WatchOOM()
	if err != nil {
		t.Fatalf("WatchOOM() = %v", err)
	}
	if w == nil {
		t.Skip("the kernel kills whole groups here")
	}
	defer w.Close()
	done := make(chan bool, 1)
	go func() { done <- w.Wait() }()
	if err := g.Remove(); err != nil {
		t.Errorf("Remove() = %v", err)
	}
	select {
	case killed := <-done:
		if killed {
			t.Error("Wait() = true for a group without processes")
		}
	case <-time.After(10 * time.Second):
		t.Error("Wait() does not return when the group is removed")
	}
}

// A tree of plain files stands in for a hierarchy: what is written where.
func TestVersion2Files(t *testing.T) {
	t.Parallel()
	mount := t.TempDir()
	put := func(path, text string) {
		if err := os.WriteFile(filepath.Join(mount, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("cgroup.controllers", "cpu memory\n")
	put("cgroup.subtree_control", "")
	if err := os.Mkdir(filepath.Join(mount, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	put("base/cgroup.subtree_control", "")
	m := cgroup.Detect(mount, "base")
	if !m.Memory() || !m.CPU() {
		t.Fatalf("Detect() = %+v, want both limits", m)
	}
	// Plain directories have no control files, so limits cannot be written.
	g, err := m.Create("box", cgroup.Limits{MemoryBytes: 1 << 20})
	if err == nil {
		t.Fatalf("Create() = %+v without control files, want an error", g)
	}
	if _, err := os.Stat(filepath.Join(mount, "base/box")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a group whose limit could not be written was left")
	}
}

func TestNothingWritable(t *testing.T) {
	t.Parallel()
	m := cgroup.Detect(filepath.Join(t.TempDir(), "absent"), "base")
	if m.Memory() || m.CPU() {
		t.Errorf("Detect(absent) = %+v, want no limits", m)
	}
	g, err := m.Create("box", cgroup.Limits{})
	if err != nil || len(g.Dirs()) != 0 {
		t.Errorf("Create() = %v, %v, want an empty group", g, err)
	}
}
