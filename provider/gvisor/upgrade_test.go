package gvisor_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
	"github.com/caisson-dev/caisson/snapshot"
)

// Saved memory is taken up again by a server with a newer agent, on the agent of
// its time; without that agent it is refused by name.
func TestRestoreAfterUpgrade(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	embeddedAgent, err := embedded.Agent()
	if err != nil {
		t.Fatal(err)
	}
	program, err := embeddedAgent.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(t.TempDir(), "agent") // the same, and another digest
	if err := os.WriteFile(newer, append(program, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	old, dir := fresh(t)
	v := vault(t.TempDir())
	b := create(t, old, spec("one", rootfs))
	a, err := b.Snapshot(within(t), snapshot.Memory, v)
	if err != nil {
		t.Fatalf("Snapshot() = %v", err)
	}
	if err := errors.Join(b.Destroy(within(t)), old.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := gvisor.New(within(t), gvisor.Config{DataDir: dir, AgentPath: newer})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.ABI() == a.ABI {
		t.Fatal("the agent is not another one")
	}
	restored, err := p.Restore(within(t), spec("two", rootfs), a, v)
	if err != nil {
		t.Fatalf("Restore() = %v", err)
	}
	// Saved again, it is still of its own agent.
	again, err := restored.(*gvisor.Box).Snapshot(within(t), snapshot.Memory, v)
	if err != nil || again.ABI != a.ABI {
		t.Errorf("Snapshot() of the restored box = %+v, %v, want ABI %s", again, err, a.ABI)
	}
	if err := restored.Destroy(within(t)); err != nil {
		t.Error(err)
	}
	for _, abi := range []string{"v0.0.0-other/agent-0123456789abcdef", a.ABI[:len(a.ABI)-1] + "x", "", "/agent-../../x"} {
		gone := a
		gone.ABI = abi
		if _, err := p.Restore(within(t), spec("three", rootfs), gone, v); !errors.Is(err, snapshot.ErrOtherEngine) || !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Restore(ABI %q) = %v, want ErrOtherEngine", abi, err)
		}
	}
}
