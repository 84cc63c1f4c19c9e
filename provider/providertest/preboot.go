package providertest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// preboot boots a box ahead of its use.
func (s *suite) preboot(t *testing.T, p provider.Provider, r provider.Resources) provider.Prebooted {
	t.Helper()
	pre, err := p.(provider.Prebooter).Preboot(step(t), provider.PrebootSpec{ID: id(), Rootfs: s.o.Rootfs, Resources: r})
	if err != nil {
		t.Fatalf("Preboot() = %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := pre.Destroy(ctx); err != nil {
			t.Errorf("Destroy() of a prebooted box = %v", err)
		}
	})
	return pre
}

func (s *suite) needPreboot(t *testing.T, p provider.Provider) {
	t.Helper()
	if !p.Capabilities().Preboot {
		t.Skip("this provider cannot boot boxes ahead of their use")
	}
}

// prebooted starts boxes that were booted before.
func (s *suite) prebooted(t *testing.T) {
	p := s.new(t)
	s.needPreboot(t, p)
	pre := s.preboot(t, p, provider.Resources{})
	if !has(t, p, pre.Handle()) {
		t.Error("List() does not contain a prebooted box, so no sweep would find it")
	}
	if _, err := pre.Stats(step(t)); err != nil {
		t.Errorf("Stats() of a prebooted box = %v", err)
	}
	spec, rec := s.spec(), NewRecorder(true)
	spec.Hostname, spec.Egress, spec.Prebooted = "named", rec, pre
	b := s.create(t, p, spec)
	if got := b.Handle().ID; got != spec.SandboxID {
		t.Errorf("id of the started box is %q, want that of its spec, %q", got, spec.SandboxID)
	}
	if has(t, p, pre.Handle()) || !has(t, p, b.Handle()) {
		t.Error("List() contains the id before the start, or not the one after it")
	}
	c := s.agent(t, b)
	if s.o.OwnNetwork {
		if got := s.tool(t, c, "hostname"); got != "named" {
			t.Errorf("host name = %q, want that of the spec", got)
		}
		if got := s.tool(t, c, "dial", "192.0.2.1:80", "mine"); got != "mine" || len(rec.Flows()) != 1 {
			t.Errorf("dial = %q with flows %v, want the attachment of the spec", got, rec.Flows())
		}
	}
	// It is used up: what remains of it can neither be used again nor end the box.
	again := s.spec()
	again.Prebooted = pre
	if other, err := p.Create(step(t), again); err == nil {
		s.destroy(t, other)
		t.Error("Create() with a used box succeeded")
	}
	if err := pre.Destroy(step(t)); err != nil {
		t.Errorf("Destroy() of a used box = %v", err)
	}
	if got := s.tool(t, c, "echo", "alive"); got != "alive" {
		t.Errorf("echo = %q", got)
	}
	s.destroy(t, b)
	s.nothingLeft(t, p)
}

// prebootedMisfits starts boxes that must be refused, and leaves nothing.
func (s *suite) prebootedMisfits(t *testing.T) {
	p := s.new(t)
	s.needPreboot(t, p)
	dead := s.preboot(t, p, provider.Resources{})
	if err := dead.Destroy(step(t)); err != nil {
		t.Fatalf("Destroy() = %v", err)
	}
	if x, err := dead.Wait(step(t)); err != nil || x.Reason != provider.ReasonDestroyed {
		t.Errorf("Wait() = %+v, %v, want %s", x, err, provider.ReasonDestroyed)
	}
	otherImage, otherSize := s.spec(), s.spec()
	otherImage.Rootfs.Digest, otherImage.Prebooted = "sha256:0", s.preboot(t, p, provider.Resources{})
	otherSize.Resources.Processes, otherSize.Prebooted = 77, s.preboot(t, p, provider.Resources{})
	ended := s.spec()
	ended.Prebooted = dead
	for name, spec := range map[string]provider.Spec{"another image": otherImage, "other resources": otherSize, "an ended box": ended} {
		if b, err := p.Create(step(t), spec); err == nil {
			s.destroy(t, b)
			t.Errorf("Create() with %s succeeded", name)
		}
		if has(t, p, spec.Prebooted.Handle()) {
			t.Errorf("Create() with %s has left the box", name)
		}
	}
	ended.Prebooted = nil
	s.destroy(t, s.create(t, p, ended)) // the same spec is good without it
	s.nothingLeft(t, p)
}

// prebootedRestore takes a memory snapshot up in a prebooted box, and copies that
// once more: every copy has a name of its own and the state of its source.
func (s *suite) prebootedRestore(t *testing.T) {
	p := s.new(t)
	s.needPreboot(t, p)
	s.needSnapshot(t, p, snapshot.Memory)
	v := newVault(t)
	b := s.create(t, p, s.spec())
	c := s.agent(t, b)
	s.background(t, c, "serve", "0.0.0.0:8000")
	s.tool(t, c, "put", "/root/file", "saved")
	for i, name := range []string{"first", "second"} {
		count := strconv.Itoa(i + 1)
		a := s.save(t, b, snapshot.Memory, v)
		if !p.(provider.Prebooter).Takes(a) {
			t.Fatalf("Takes(%+v) = false for what this provider has just saved", a)
		}
		spec, rec := s.spec(), NewRecorder(true)
		spec.Hostname, spec.Egress, spec.Prebooted = name, rec, s.preboot(t, p, provider.Resources{})
		clone := s.restore(t, p, spec, a, v)
		if h, err := clone.Control().Health(step(t)); err != nil || h.Ready {
			t.Errorf("Health() of %s = %+v, %v, want an agent without identity", name, h, err)
		}
		cc := s.agent(t, clone)
		if got := s.tool(t, cc, "hostname"); got != name {
			t.Errorf("host name of %s = %q", name, got)
		}
		if got := s.tool(t, cc, "get", "/root/file"); got != "saved" {
			t.Errorf("file of %s = %q, want %q", name, got, "saved")
		}
		if got := s.get(t, clone, 8000, "/count"); got != count {
			t.Errorf("count of %s = %q, want %s", name, got, count)
		}
		if got := s.tool(t, cc, "dial", "192.0.2.1:80", "mine"); got != "mine" || len(rec.Flows()) != 1 {
			t.Errorf("dial from %s = %q with flows %v, want its own attachment", name, got, rec.Flows())
		}
		b = clone // the next one is a copy of the copy
	}
	a := snapshot.Artifact{ID: "none", Kind: snapshot.Memory, ABI: "engine of last year", RootfsDigest: s.o.Rootfs.Digest}
	spec := s.spec()
	spec.Prebooted = s.preboot(t, p, provider.Resources{})
	if _, err := p.(provider.Restorer).Restore(step(t), spec, a, v); err == nil || has(t, p, spec.Prebooted.Handle()) {
		t.Errorf("Restore(another ABI) = %v, and the prebooted box is there still: %v", err, has(t, p, spec.Prebooted.Handle()))
	}
	if p.(provider.Prebooter).Takes(a) {
		t.Error("Takes(another ABI) = true")
	}
}

// prebootedRestart ends the provider while a box waits: it must be gone, since
// no other server knows of it.
func (s *suite) prebootedRestart(t *testing.T) {
	p := s.new(t)
	s.needPreboot(t, p)
	if s.o.Restart == nil {
		t.Skip("this provider's boxes do not survive a restart")
	}
	pre, err := p.(provider.Prebooter).Preboot(step(t), provider.PrebootSpec{ID: id(), Rootfs: s.o.Rootfs})
	if err != nil {
		t.Fatalf("Preboot() = %v", err)
	}
	next := s.o.Restart(t, p)
	for deadline := time.Now().Add(patience); has(t, next, pre.Handle()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a prebooted box outlives its server")
		}
	}
	s.nothingLeft(t, next)
}
