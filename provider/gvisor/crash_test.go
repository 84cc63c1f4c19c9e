package gvisor_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
	"github.com/caisson-dev/caisson/snapshot"
)

func spec(id string, rootfs image.Rootfs) provider.Spec {
	return provider.Spec{SandboxID: id, Hostname: "box", Rootfs: rootfs, Egress: providertest.NewRecorder(false)}
}

func create(t *testing.T, p *gvisor.Provider, s provider.Spec) *gvisor.Box {
	t.Helper()
	b, err := p.Create(within(t), s)
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	return b.(*gvisor.Box)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// run executes the toolbox through the engine, without the agent.
func run(t *testing.T, b *gvisor.Box, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	status, err := b.Exec(within(t), append([]string{providertest.GuestTool}, args...), nil, &out)
	if err != nil || status != 0 {
		t.Fatalf("Exec(%q) = %d, %v, output %q", args, status, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func sentry(t *testing.T, b *gvisor.Box) int {
	t.Helper()
	pid, err := b.SentryPID(within(t))
	if err != nil || pid <= 1 {
		t.Fatalf("SentryPID() = %d, %v", pid, err)
	}
	return pid
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); n != 1 {
		t.Fatalf("process %d still runs after 20 s: %v", pid, err)
	}
}

func reason(t *testing.T, b provider.Box) string {
	t.Helper()
	x, err := b.Wait(within(t))
	if err != nil {
		t.Fatalf("Wait() = %v", err)
	}
	return x.Reason
}

func TestEngineKilled(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	boxes := []*gvisor.Box{create(t, p, spec("one", rootfs)), create(t, p, spec("two", rootfs))}
	var sentries []int
	for _, b := range boxes {
		sentries = append(sentries, sentry(t, b))
	}
	pid, err := p.EnginePID(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, b := range boxes {
		if got := reason(t, b); got != provider.ReasonEngineLost {
			t.Errorf("box %d ended with reason %s, want %s", i, got, provider.ReasonEngineLost)
		}
		gone(t, sentries[i])
		if _, err := p.Open(within(t), b.Handle(), providertest.NewRecorder(false)); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Open(lost box) = %v, want ErrNotFound", err)
		}
		if err := b.Destroy(within(t)); err != nil {
			t.Errorf("Destroy(lost box) = %v", err)
		}
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
	b := create(t, p, spec("three", rootfs))
	if got := run(t, b, "echo", "again"); got != "again" {
		t.Errorf("echo in a new box = %q", got)
	}
}

func TestSentryKilled(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, _ := fresh(t)
	b, other := create(t, p, spec("one", rootfs)), create(t, p, spec("two", rootfs))
	if err := unix.Kill(sentry(t, b), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := reason(t, b); got != provider.ReasonCrashed {
		t.Errorf("reason = %s, want %s", got, provider.ReasonCrashed)
	}
	if got := run(t, other, "echo", "alive"); got != "alive" {
		t.Errorf("neighbour says %q", got)
	}
	r, err := b.Route(within(t), 80)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := r.Dial(within(t)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Dial(ended box) = %v, %v, want ErrUnavailable", c, err)
	}
}

func TestAgentExits(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, _ := fresh(t)
	b := create(t, p, spec("one", rootfs))
	_, _ = b.Exec(within(t), []string{providertest.GuestTool, "kill", "1", "15"}, nil, nil)
	if got := reason(t, b); got != provider.ReasonExited {
		t.Errorf("reason = %s, want %s", got, provider.ReasonExited)
	}
}

// A spawner that dies takes no box with it, and is replaced.
func TestSpawnerKilled(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	b := create(t, p, spec("one", rootfs))
	pid, err := p.EnginePID(within(t))
	if err != nil {
		t.Fatal(err)
	}
	spawners := children(t, pid)
	if len(spawners) == 0 {
		t.Fatal("the engine has no spawners")
	}
	for _, s := range spawners {
		if err := unix.Kill(s, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, s)
	}
	if got := run(t, b, "echo", "alive"); got != "alive" {
		t.Errorf("box of a dead spawner says %q", got)
	}
	other := create(t, p, spec("two", rootfs))
	if got := run(t, other, "echo", "alive"); got != "alive" {
		t.Errorf("box of a new spawner says %q", got)
	}
	for _, b := range []*gvisor.Box{b, other} {
		s := sentry(t, b)
		if err := b.Destroy(within(t)); err != nil {
			t.Errorf("Destroy() = %v", err)
		}
		gone(t, s)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

func children(t *testing.T, parent int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var state string
		var ppid int
		if _, err := fmt.Sscan(string(raw[bytes.LastIndexByte(raw, ')')+1:]), &state, &ppid); err == nil && ppid == parent {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			out = append(out, pid)
		}
	}
	return out
}

// The deadline holds while no server is connected, and the next server learns
// how the box ended.
func TestDeadlineWithoutServer(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	s := spec("one", rootfs)
	s.Deadline = time.Now().Add(3 * time.Second)
	b := create(t, p, s)
	pid := sentry(t, b)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	p = open(t, dir)
	_, err := p.Open(within(t), b.Handle(), providertest.NewRecorder(false))
	ended, ok := errors.AsType[*gvisor.EndedError](err)
	if !ok || !errors.Is(err, errdefs.ErrNotFound) || ended.Exit().Reason != provider.ReasonDeadline {
		t.Fatalf("Open() = %v, want an EndedError for %s", err, provider.ReasonDeadline)
	}
	if time.Now().Before(s.Deadline) {
		t.Error("the box ended before its deadline")
	}
}

// What confines the sandbox process on the host.
func TestConfinement(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, _ := fresh(t)
	b, other := create(t, p, spec("one", rootfs)), create(t, p, spec("two", rootfs))
	pid := sentry(t, b)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(line, ":")
		fields[k] = strings.Join(strings.Fields(v), " ")
	}
	for k, want := range map[string]string{
		"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000",
	} {
		if fields[k] != want {
			t.Errorf("%s of the sandbox process = %q, want %q", k, fields[k], want)
		}
	}
	if os.Geteuid() == 0 && strings.Contains(" "+fields["Uid"]+" ", " 0 ") {
		t.Errorf("Uid of the sandbox process = %q, want none to be root", fields["Uid"])
	}
	for _, ns := range []string{"net", "pid", "mnt", "user", "ipc", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []int{pid, sentry(t, other)} {
			theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", host, ns))
			if err != nil || theirs == mine {
				t.Errorf("%s namespace of the sandbox process = %s, %v, the host's is %s", ns, theirs, err, mine)
			}
		}
	}
	// No descriptor is shared between boxes but the images.
	a, z := sockets(t, pid), sockets(t, sentry(t, other))
	if len(a) < 4 {
		t.Fatalf("sandbox has sockets %v: the test looks in the wrong place", a)
	}
	for s := range a {
		if z[s] {
			t.Errorf("two sandboxes hold %s", s)
		}
	}
}

func sockets(t *testing.T, pid int) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			out[to] = true
		}
	}
	return out
}

func TestExportLayer(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, _ := fresh(t)
	b := create(t, p, spec("one", rootfs))
	run(t, b, "put", "/root/new", "content")
	run(t, b, "remove", "/etc/hosts")
	var buf bytes.Buffer
	if err := b.ExportLayer(within(t), &buf); err != nil {
		t.Fatalf("ExportLayer() = %v", err)
	}
	found := map[string]string{}
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeChar {
			body = []byte("deleted")
		}
		found[strings.Trim(strings.TrimPrefix(h.Name, "."), "/")] = string(body)
	}
	for name, want := range map[string]string{"root/new": "content", "etc/hosts": "deleted"} {
		if found[name] != want {
			t.Errorf("%s in the layer = %q, want %q (all: %v)", name, found[name], want, found)
		}
	}
	// The memory of a restored box comes page by page, and its layer with it.
	v, err := snapshot.NewLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.Snapshot(within(t), snapshot.Memory, v)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := p.Restore(within(t), spec("two", rootfs), a, v)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = restored.Destroy(within(t)) }()
	err = restored.(provider.LayerExporter).ExportLayer(within(t), io.Discard)
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ExportLayer() of a restored box = %v, want ErrFailedPrecondition", err)
	}
}

// Programs are looked for before anything is touched.
func TestNewNeedsAbsoluteDirectory(t *testing.T) {
	t.Parallel()
	if _, err := gvisor.New(t.Context(), gvisor.Config{DataDir: "relative"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("New(relative directory) = %v, want ErrInvalidArgument", err)
	}
}

// A server on a copy of a directory that is in use leaves its sandboxes alone.
func TestCopiedDirectory(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	b := create(t, p, spec("one", rootfs))
	copied := filepath.Join(t.TempDir(), "copy")
	record := "engine/boxes/one/box.json"
	raw, err := os.ReadFile(filepath.Join(dir, record))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(copied, record)), 0o700), os.WriteFile(filepath.Join(copied, record), raw, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, copied)
	defer func() {
		if err := other.StopEngine(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	if got := run(t, b, "echo", "alive"); got != "alive" {
		t.Errorf("the box of the directory that was copied says %q", got)
	}
}
