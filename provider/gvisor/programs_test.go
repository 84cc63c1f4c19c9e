package gvisor_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
)

// Names of another build.
const (
	oldEngine = "caisson-engine-0123456789abcdef"
	oldAgent  = "caisson-agent-0123456789abcdef"
	oldImage  = "agent-0123456789abcdef.erofs"
)

// programs lists the directory of programs below dir.
func programs(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "programs"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, ent := range entries {
		names = append(names, ent.Name())
	}
	return names
}

// plant puts a file among the programs and returns its path.
func plant(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, "programs", name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func artifact(t *testing.T, get func() (embedded.Artifact, error)) []byte {
	t.Helper()
	a, err := get()
	if errors.Is(err, embedded.ErrAbsent) {
		t.Skipf("no real sandboxes: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reopen closes p and returns the provider of the next start.
func reopen(t *testing.T, p *gvisor.Provider, dir string, abis ...string) *gvisor.Provider {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, abis...)
}

func TestProgramsThatNothingUses(t *testing.T) {
	p, dir := fresh(t)
	want := programs(t, dir) // of this build
	for _, name := range []string{oldEngine, oldAgent, oldImage} {
		plant(t, dir, name, []byte("old"))
	}
	dead := plant(t, dir, "caisson-engine-1234.new", nil)
	if err := os.Chtimes(dead, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	// What is not known to be ours, and what somebody may be writing.
	for _, name := range []string{"agent-77.new", "caisson-engine-0123456789abcdef.bak", "notes", "engine-0123456789abcdef"} {
		plant(t, dir, name, nil)
		want = append(want, name)
	}
	odd := "caisson-engine-00000000000000dd"
	if err := os.Mkdir(filepath.Join(dir, "programs", odd), 0o755); err != nil {
		t.Fatal(err)
	}
	want = append(want, odd)
	// What a first "init" unpacks beside.
	a, err := embedded.Agent()
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, filepath.Base(plant(t, dir, "caisson-agent-"+a.Digest[:16], nil)))

	reopen(t, p, dir)
	slices.Sort(want)
	if diff := cmp.Diff(want, programs(t, dir)); diff != "" {
		t.Errorf("programs after a start (-want +got):\n%s", diff)
	}
}

// Memory that was saved under an agent needs it again.
func TestProgramsOfSavedMemory(t *testing.T) {
	p, dir := fresh(t)
	for _, name := range []string{oldEngine, oldImage} {
		plant(t, dir, name, []byte("old"))
	}
	digest := strings.TrimSuffix(strings.TrimPrefix(oldImage, "agent-"), ".erofs")
	p = reopen(t, p, dir, "", "v1/agent-0000000000000000", "v1/agent-"+digest)
	if names := programs(t, dir); !slices.Contains(names, oldImage) || slices.Contains(names, oldEngine) {
		t.Errorf("programs %q, want %s to stay and %s to go", names, oldImage, oldEngine)
	}
	// Who cannot tell what is saved removes no agent.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	blind, err := gvisor.New(within(t), gvisor.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if names := programs(t, dir); !slices.Contains(names, oldImage) {
		t.Errorf("%s was removed although nobody knows what is saved: %q", oldImage, names)
	}
	reopen(t, blind, dir)
	if names := programs(t, dir); slices.Contains(names, oldImage) {
		t.Errorf("%s stays although nothing needs it: %q", oldImage, names)
	}
}

// An upgrade under a running box: its engine and its agent go when it has gone.
func TestProgramsOfRunningBoxes(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	if err := errors.Join(p.StopEngine(within(t)), p.Close()); err != nil {
		t.Fatal(err)
	}
	agent := plant(t, t.TempDir(), "agent", append(artifact(t, embedded.Agent), 0)) // another digest
	before, err := gvisor.New(t.Context(), gvisor.Config{
		DataDir: dir, AgentPath: agent, EnginePath: plant(t, dir, oldEngine, artifact(t, embedded.Engine)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	image, _ := before.Layout()
	b := create(t, before, spec("one", rootfs))
	pid, err := before.EnginePID(within(t))
	if err != nil {
		t.Fatal(err)
	}
	kept := func(when string, want bool) {
		t.Helper()
		names := programs(t, dir)
		for _, name := range []string{oldEngine, filepath.Base(image)} {
			if slices.Contains(names, name) != want {
				t.Errorf("%s: %s is there = %v, want %v", when, name, !want, want)
			}
		}
	}

	// From here on no process runs the file of that name: the engine's word that
	// it is of this build is all there is.
	moved := filepath.Join(dir, "programs", "moved")
	if err := os.Rename(filepath.Join(dir, "programs", oldEngine), moved); err != nil {
		t.Fatal(err)
	}
	plant(t, dir, oldEngine, nil)
	box := sentry(t, b)
	p = reopen(t, before, dir)
	kept("while the box runs", true)
	if err := unix.Kill(box, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, box)
	p = reopen(t, p, dir)
	if names := programs(t, dir); !slices.Contains(names, filepath.Base(image)) {
		t.Errorf("the image that an ended box's record names has gone: %q", names)
	}
	if err := p.Destroy(within(t), b.Handle()); err != nil {
		t.Fatal(err)
	}
	spawners := children(t, pid)
	if err := p.StopEngine(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(spawners, pid) {
		gone(t, pid)
	}
	reopen(t, p, dir)
	kept("after the box", false)
}

// What any process runs, has open or has mapped stays.
func TestProgramsOfOtherProcesses(t *testing.T) {
	p, dir := fresh(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("no program to run: %v", err)
	}
	tool, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(plant(t, dir, oldEngine, tool), "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	defer end()
	f, err := os.Open(plant(t, dir, oldImage, bytes.Repeat([]byte("x"), 4096)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const mappedImage = "agent-fedcba9876543210.erofs"
	g, err := os.Open(plant(t, dir, mappedImage, bytes.Repeat([]byte("x"), 4096)))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := unix.Mmap(int(g.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err := errors.Join(err, g.Close()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(pages) }()
	used := []string{oldEngine, oldImage, mappedImage}

	p = open(t, dir)
	for _, name := range used {
		if !slices.Contains(programs(t, dir), name) {
			t.Errorf("%s was removed although a process uses it", name)
		}
	}
	end()
	if err := errors.Join(f.Close(), unix.Munmap(pages)); err != nil {
		t.Fatal(err)
	}
	pages = nil
	reopen(t, p, dir)
	for _, name := range used {
		if slices.Contains(programs(t, dir), name) {
			t.Errorf("%s stays although no process uses it", name)
		}
	}
}

// A box whose record names no agent may use any.
func TestProgramsInDoubt(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	plant(t, dir, oldImage, nil)
	image, overlays := p.Layout()
	c := raw(t, p)
	greet(t, c, wire.Version)
	send(t, c, wire.Message{ID: 2, Op: wire.OpCreate, Body: wire.Encode(wire.Create{
		ID: "one", Hostname: "box", Rootfs: rootfs.Path, Agent: image, OverlayDir: overlays,
		Unenforced: []string{wire.LimitMemory, wire.LimitCPU}, Meta: []byte(`{"rootfsDigest":"x"}`),
	})})
	m, files, err := c.Receive()
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil || m.Error != nil {
		t.Fatalf("create = %+v, %v", m, err)
	}
	p = reopen(t, p, dir)
	if names := programs(t, dir); !slices.Contains(names, oldImage) {
		t.Errorf("%s was removed in doubt: %q", oldImage, names)
	}
	send(t, c, wire.Message{ID: 3, Op: wire.OpKill, Body: wire.Encode(wire.ByID{ID: "one"})})
	for m.ID != 3 {
		if m, _, err = c.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	reopen(t, p, dir)
	if names := programs(t, dir); slices.Contains(names, oldImage) {
		t.Errorf("%s stays: %q", oldImage, names)
	}
}
