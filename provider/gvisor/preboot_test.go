package gvisor_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
)

func preboot(t *testing.T, p *gvisor.Provider, id string, rootfs image.Rootfs) provider.Prebooted {
	t.Helper()
	pre, err := p.Preboot(within(t), provider.PrebootSpec{ID: id, Rootfs: rootfs})
	if err != nil {
		t.Fatalf("Preboot() = %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := pre.Destroy(ctx); err != nil && !errdefs.IsUnavailable(err) { // of a closed provider
			t.Errorf("Destroy() = %v", err)
		}
	})
	return pre
}

// sentryOf is the process of a box by its id.
func sentryOf(t *testing.T, p *gvisor.Provider, id string) int {
	t.Helper()
	pid, err := p.SentryOf(within(t), id)
	if err != nil || pid <= 1 {
		t.Fatalf("SentryOf(%s) = %d, %v", id, pid, err)
	}
	return pid
}

// An engine that dies takes boxes along that wait, and those that waited: nothing
// of them is left, whichever name it has.
func TestEngineKilledWithPrebooted(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	waits := preboot(t, p, "waits", rootfs)
	s := spec("runs", rootfs)
	s.Prebooted = preboot(t, p, "waited", rootfs)
	runs := create(t, p, s)
	sentries := []int{sentryOf(t, p, "waits"), sentryOf(t, p, "runs")}
	pid, err := p.EnginePID(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, pid := range sentries {
		gone(t, pid)
	}
	if x, err := waits.Wait(within(t)); err != nil || x.Reason != provider.ReasonEngineLost {
		t.Errorf("Wait() of a prebooted box = %+v, %v, want %s", x, err, provider.ReasonEngineLost)
	}
	if got := reason(t, runs); got != provider.ReasonEngineLost {
		t.Errorf("the box that was prebooted ended with %s, want %s", got, provider.ReasonEngineLost)
	}
	s = spec("other", rootfs)
	s.Prebooted = waits
	if b, err := p.Create(within(t), s); err == nil {
		t.Errorf("Create() with a lost box = %v", b.Handle())
	}
	if err := errors.Join(waits.Destroy(within(t)), runs.Destroy(within(t))); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

// A server that dies leaves a box that was prebooted, under its new id, and none
// that waits.
func TestServerLostWithPrebooted(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	if _, err := p.Preboot(within(t), provider.PrebootSpec{ID: "waits", Rootfs: rootfs}); err != nil {
		t.Fatal(err)
	}
	s := spec("runs", rootfs)
	s.Prebooted = preboot(t, p, "waited", rootfs)
	b := create(t, p, s)
	pid := sentryOf(t, p, "waits")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	next := open(t, dir)
	again, err := next.Open(within(t), b.Handle(), providertest.NewRecorder(false))
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	if got := run(t, again.(*gvisor.Box), "echo", "alive"); got != "alive" {
		t.Errorf("echo = %q", got)
	}
	if hs, err := next.List(within(t)); err != nil || len(hs) != 1 {
		t.Errorf("List() = %v, %v, want the one that runs", hs, err)
	}
	if err := again.Destroy(within(t)); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

// A box whose sentry hangs is given up soon, and nothing of it is left.
func TestPrebootedHangs(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	p, dir := fresh(t)
	s := spec("box", rootfs)
	s.Prebooted = preboot(t, p, "hangs", rootfs)
	pid := sentryOf(t, p, "hangs")
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if b, err := p.Create(within(t), s); !errdefs.IsUnavailable(err) {
		t.Fatalf("Create() with a box that hangs = %v, %v, want ErrUnavailable", b, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s to give up", took)
	}
	gone(t, pid)
	s.Prebooted = nil
	b := create(t, p, s)
	if err := b.Destroy(within(t)); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}
