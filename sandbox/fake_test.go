package sandbox_test

import (
	"bytes"
	"os/user"
	"testing"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/containerd/errdefs"
)

func overFake(t testing.TB, cfg sandbox.Config) *process {
	t.Helper()
	w := &world{db: storetest.SQLite(t), seed: identity.NewSeed()}
	prov, err := fake.New(fake.Config{
		Unenforced: []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk}, Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Unenforced = []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, sandbox.UnenforcedEgress}
	p := &process{w: w, guard: &guard{attached: map[string]egress.Policy{}}, stopped: make(chan struct{})}
	p.Manager, err = sandbox.New(cfg, sandbox.Deps{
		Store: w.db, Templates: resolver{s: w.db}, Provider: prov, Guard: faultyGuard{p.guard, p}, Policy: policy, Seed: w.seed, Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.run(t)
}

// The real agent, in this process, answers through the Manager.
func TestRealAgent(t *testing.T) {
	t.Parallel()
	p := overFake(t, testConfig())
	r := request()
	r.Env = map[string]string{"GREETING": "hello"}
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	agent, err := p.Agent(t.Context(), sb.ID)
	if err != nil {
		t.Fatalf("Agent() = %v", err)
	}
	if again, err := p.Agent(t.Context(), sb.ID); again != agent || err != nil {
		t.Errorf("Agent() again = %p, %v, want the same", again, err)
	}
	me, err := user.Current() // this host has no user "user"
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	proc, err := agent.Exec(t.Context(), agentclient.Command{Cmd: "/bin/sh", Args: []string{"-c", `echo "$GREETING"`}, User: me.Username, Stdout: &out})
	if err != nil {
		t.Fatalf("Exec() = %v", err)
	}
	if exit, err := proc.Wait(); err != nil || exit.Code != 0 || out.String() != "hello\n" {
		t.Errorf("Wait() = %+v, %v with output %q", exit, err, out.String())
	}
	if err := p.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if _, err := p.Agent(t.Context(), sb.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Agent(killed) = %v, want not found", err)
	}
}

// BenchmarkCreateKill measures what the Manager, the database and the real
// agent cost around a box that costs nothing.
func BenchmarkCreateKill(b *testing.B) {
	p := overFake(b, testConfig())
	for b.Loop() {
		sb, err := p.Create(b.Context(), alice, request())
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Kill(b.Context(), alice, sb.ID, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateKillBare is the same without an agent: the Manager and the
// database only.
func BenchmarkCreateKillBare(b *testing.B) {
	w := &world{db: storetest.SQLite(b), boxes: newBoxes(), seed: identity.NewSeed()}
	b.Cleanup(w.boxes.close)
	p := w.boot(b, testConfig()).run(b)
	for b.Loop() {
		sb := create(b, p)
		if err := p.Kill(b.Context(), alice, sb.ID, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLive(b *testing.B) {
	p := overFake(b, testConfig())
	sb := create(b, p)
	for b.Loop() {
		if _, ok := p.Live(sb.ID); !ok {
			b.Fatal("not live")
		}
	}
}
