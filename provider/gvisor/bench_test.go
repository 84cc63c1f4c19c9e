package gvisor_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
)

// benchProvider is fresh for benchmarks.
func benchProvider(b *testing.B) *gvisor.Provider {
	b.Helper()
	p, err := gvisor.New(b.Context(), gvisor.Config{DataDir: b.TempDir()})
	if err != nil {
		b.Skipf("no real sandboxes: %v", err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := p.StopEngine(ctx); err != nil {
			b.Errorf("StopEngine() = %v", err)
		}
		_ = p.Close()
	})
	return p
}

// fastest reports the best of all rounds: what the code can do on a machine that
// does other things too.
type fastest struct{ d time.Duration }

func (f *fastest) round(start time.Time) {
	if d := time.Since(start); f.d == 0 || d < f.d {
		f.d = d
	}
}

func (f *fastest) report(b *testing.B) { b.ReportMetric(float64(f.d.Microseconds())/1000, "min-ms/op") }

// BenchmarkCreate measures a cold create until the agent answers.
func BenchmarkCreate(b *testing.B) {
	rootfs := providertest.BuildRootfs(b)
	p := benchProvider(b)
	n := 0
	var best fastest
	defer best.report(b)
	for b.Loop() {
		n++
		start := time.Now()
		box, err := p.Create(b.Context(), spec("create"+strconv.Itoa(n), rootfs))
		if err != nil {
			b.Fatal(err)
		}
		best.round(start)
		b.StopTimer()
		if err := box.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkFirstOutput measures a cold create until the output of a command.
func BenchmarkFirstOutput(b *testing.B) {
	rootfs := providertest.BuildRootfs(b)
	p := benchProvider(b)
	n := 0
	var best fastest
	defer best.report(b)
	for b.Loop() {
		n++
		start := time.Now()
		box, err := p.Create(b.Context(), spec("first"+strconv.Itoa(n), rootfs))
		if err != nil {
			b.Fatal(err)
		}
		output(b, box)
		best.round(start)
		b.StopTimer()
		if err := box.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkRestore measures a restore from memory until the agent answers.
func BenchmarkRestore(b *testing.B) {
	rootfs := providertest.BuildRootfs(b)
	p := benchProvider(b)
	box, err := p.Create(b.Context(), spec("original", rootfs))
	if err != nil {
		b.Fatal(err)
	}
	v := vault(b.TempDir())
	a, err := box.(provider.Snapshotter).Snapshot(b.Context(), snapshot.Memory, v)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	var best fastest
	defer best.report(b)
	for b.Loop() {
		n++
		start := time.Now()
		clone, err := p.Restore(b.Context(), spec("clone"+strconv.Itoa(n), rootfs), a, v)
		if err != nil {
			b.Fatal(err)
		}
		best.round(start)
		b.StopTimer()
		if err := clone.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func output(b *testing.B, box provider.Box) {
	b.Helper()
	if err := box.Control().Init(b.Context(), control.Init{SandboxID: "bench", AccessToken: "token", Now: time.Now()}); err != nil {
		b.Fatal(err)
	}
	r, err := box.Route(b.Context(), control.AgentPort)
	if err != nil {
		b.Fatal(err)
	}
	c := agentclient.New(r, secret.New("token"))
	defer c.Close()
	var out strings.Builder
	p, err := c.Exec(b.Context(), agentclient.Command{Cmd: providertest.GuestTool, Args: []string{"echo", "hi"}, Stdout: &out})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := p.Wait(); err != nil || out.String() != "hi\n" {
		b.Fatalf("output = %q, %v", out.String(), err)
	}
}
