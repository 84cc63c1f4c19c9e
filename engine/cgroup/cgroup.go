// Package cgroup makes one control group per box, on cgroup v1 and v2, reads
// its use and watches it for out-of-memory kills. Package spawner starts the
// sandbox process inside, so everything it starts is inside too.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is where the kernel's control groups are mounted.
const Mount = "/sys/fs/cgroup"

// cpuPeriod is the CFS period in microseconds.
const cpuPeriod = 100_000

// Limits of one group; zero means none.
type Limits struct {
	MemoryBytes int64
	CPUs        int
}

// Manager makes groups below one directory per hierarchy. The zero value can
// enforce nothing and makes empty groups.
type Manager struct {
	v2     string // base directory, or ""
	memory string // v1 base directories, or ""
	cpu    string
	acct   string
}

// Detect finds out what can be enforced below mount, and makes base directories
// called name. Having no permission is no error: the manager then offers less.
func Detect(mount, name string) *Manager {
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err == nil {
		return &Manager{v2: baseV2(mount, name)}
	}
	m := &Manager{
		memory: baseV1(mount, "memory", name, "memory.limit_in_bytes"),
		cpu:    baseV1(mount, "cpu", name, "cpu.cfs_quota_us"),
	}
	if m.memory != "" || m.cpu != "" {
		m.acct = baseV1(mount, "cpuacct", name, "cpuacct.usage")
	}
	return m
}

// baseV1 returns the base directory of one controller when limits can be
// written there.
func baseV1(mount, controller, name, probe string) string {
	root, err := filepath.EvalSymlinks(filepath.Join(mount, controller))
	if err != nil {
		return ""
	}
	base := filepath.Join(root, name)
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return ""
	}
	if unix.Access(filepath.Join(base, probe), unix.R_OK) != nil || unix.Access(filepath.Join(base, "cgroup.procs"), unix.W_OK) != nil {
		return ""
	}
	return base
}

// baseV2 prefers the group that systemd delegated to us; otherwise, as root, a
// group at the top. Processes and controllers exclude each other in one group,
// so our own processes move to a leaf first.
func baseV2(mount, name string) string {
	if own := ownV2(mount); own != "" && own != mount && onlyUs(own) {
		leaf := filepath.Join(own, "engine")
		if mkdir(leaf) == nil && Write(leaf, "cgroup.procs", "0") == nil {
			if base := enableV2(own, name); base != "" {
				return base
			}
			_ = Write(own, "cgroup.procs", "0")
			_ = os.Remove(leaf)
		}
	}
	return enableV2(mount, name)
}

// enableV2 turns the controllers on in parent and in the base below it.
func enableV2(parent, name string) string {
	const controllers = "+memory +cpu"
	if Write(parent, "cgroup.subtree_control", controllers) != nil {
		return ""
	}
	base := filepath.Join(parent, name)
	if mkdir(base) != nil || Write(base, "cgroup.subtree_control", controllers) != nil {
		_ = os.Remove(base)
		return ""
	}
	return base
}

// ownV2 is this process's group in the v2 hierarchy.
func ownV2(mount string) string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(mount, p)
		}
	}
	return ""
}

func onlyUs(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	return err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(os.Getpid())
}

// Memory reports whether memory limits can be enforced.
func (m *Manager) Memory() bool { return m.v2 != "" || m.memory != "" }

// CPU reports whether CPU limits can be enforced.
func (m *Manager) CPU() bool { return m.v2 != "" || m.cpu != "" }

// Close removes the base directories, if they are empty.
func (m *Manager) Close() error {
	return errors.Join(removeAll(bases(m.v2, m.memory, m.cpu, m.acct))...)
}

// bases drops empty and double entries; cpu and cpuacct are often one.
func bases(dirs ...string) []string {
	var out []string
	for _, d := range dirs {
		if d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// Create makes the group of box id with its limits. A limit that cannot be
// written is an error; a hierarchy that is not available is left out, which the
// caller has checked with Memory and CPU.
func (m *Manager) Create(id string, l Limits) (*Group, error) {
	g := &Group{v2: join(m.v2, id), memory: join(m.memory, id), cpu: join(m.cpu, id), acct: join(m.acct, id), limits: l}
	var made []string
	for _, d := range g.Dirs() {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make cgroup: %w", err), RemoveDirs(made))
		}
		made = append(made, d)
	}
	if err := g.limit(); err != nil {
		return nil, errors.Join(err, RemoveDirs(made))
	}
	return g, nil
}

func join(base, id string) string {
	if base == "" {
		return ""
	}
	return filepath.Join(base, id)
}

func (g *Group) limit() error {
	type set struct{ dir, file, value string }
	var sets []set
	if g.v2 != "" {
		sets = append(sets, set{g.v2, "memory.oom.group", "1"})
	}
	if n := g.limits.MemoryBytes; n > 0 {
		v := strconv.FormatInt(n, 10)
		if g.v2 != "" {
			sets = append(sets, set{g.v2, "memory.max", v})
		} else if g.memory != "" {
			sets = append(sets, set{g.memory, "memory.limit_in_bytes", v})
		}
	}
	if n := g.limits.CPUs; n > 0 {
		if g.v2 != "" {
			sets = append(sets, set{g.v2, "cpu.max", fmt.Sprintf("%d %d", n*cpuPeriod, cpuPeriod)})
		} else if g.cpu != "" {
			sets = append(sets, set{g.cpu, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)},
				set{g.cpu, "cpu.cfs_quota_us", strconv.Itoa(n * cpuPeriod)})
		}
	}
	for _, s := range sets {
		if err := Write(s.dir, s.file, s.value); err != nil {
			return fmt.Errorf("set limit: %w", err)
		}
	}
	g.noSwap()
	return nil
}

// noSwap keeps the box off the swap where the kernel accounts for it; where it
// does not, the files are absent.
func (g *Group) noSwap() {
	if g.limits.MemoryBytes <= 0 {
		return
	}
	if g.v2 != "" {
		_ = Write(g.v2, "memory.swap.max", "0")
	}
	if g.memory != "" {
		_ = Write(g.memory, "memory.swappiness", "0") // where memsw is absent
		_ = Write(g.memory, "memory.memsw.limit_in_bytes", strconv.FormatInt(g.limits.MemoryBytes, 10))
	}
}

// Group is the control group of one box: one directory with v2, up to three
// with v1, none where nothing can be enforced.
type Group struct {
	v2, memory, cpu, acct string
	limits                Limits
}

// V2 reports whether the group is one of cgroup v2.
func (g *Group) V2() bool { return g.v2 != "" }

// Dirs lists the group's directories.
func (g *Group) Dirs() []string { return bases(g.v2, g.memory, g.cpu, g.acct) }

// Remove kills what is left in the group and removes it.
func (g *Group) Remove() error { return RemoveDirs(g.Dirs()) }

// RemoveDirs removes group directories by path, as recorded by an earlier
// engine, with the processes in them: it kills them as often as it takes,
// because one may fork before it dies, and the kernel needs a moment to notice
// an end. Directories that are absent are no error.
func RemoveDirs(dirs []string) error {
	const attempts = 200
	for attempt := 1; ; attempt++ {
		errs := removeAll(dirs)
		if len(errs) == 0 {
			return nil
		}
		if attempt == attempts {
			return fmt.Errorf("remove cgroup: %w", errors.Join(errs...))
		}
		killAll(dirs)
		time.Sleep(5 * time.Millisecond)
	}
}

// Own returns those of the directories that are groups below this Manager's.
func (m *Manager) Own(dirs []string) []string {
	ours := bases(m.v2, m.memory, m.cpu, m.acct)
	return slices.DeleteFunc(slices.Clone(dirs), func(d string) bool { return !slices.Contains(ours, filepath.Dir(d)) })
}

// Sweep removes every group below the base directories, with the processes in
// it: what an engine that died has made and not recorded. No box of the calling
// engine may exist.
func (m *Manager) Sweep() error {
	var errs []error
	for _, base := range bases(m.v2, m.memory, m.cpu, m.acct) {
		entries, err := os.ReadDir(base)
		if err != nil {
			errs = append(errs, fmt.Errorf("list cgroups: %w", err))
			continue
		}
		var dirs []string
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, filepath.Join(base, e.Name()))
			}
		}
		errs = append(errs, RemoveDirs(dirs))
	}
	return errors.Join(errs...)
}

func removeAll(dirs []string) []error {
	var errs []error
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: d, Err: err})
		}
	}
	return errs
}

// killAll sends SIGKILL to every process in the given groups.
func killAll(dirs []string) {
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil {
			continue
		}
		for f := range bytes.FieldsSeq(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Write sets a control file of a group.
func Write(dir, file, value string) error {
	// Never created: a file that is not there is a control that is not there.
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
