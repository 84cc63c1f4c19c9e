package providertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/provider"
)

func (s *suite) needLimit(t *testing.T, p provider.Provider, l provider.Limit) {
	t.Helper()
	if !slices.Contains(p.Capabilities().Limits, l) {
		t.Skipf("limit %s cannot be enforced here", l)
	}
}

// limitMemory makes one box run out of memory: it ends, says why, and its
// neighbour notices nothing.
func (s *suite) limitMemory(t *testing.T) {
	p := s.new(t)
	s.needLimit(t, p, provider.LimitMemory)
	spec := s.spec()
	spec.Resources.MemoryMiB = 128
	b := s.create(t, p, spec)
	other := s.spec()
	other.Resources.MemoryMiB = 128
	neighbour := s.create(t, p, other)
	c := s.agent(t, b)
	if got := s.tool(t, c, "alloc", "32"); got != "allocated 32" {
		t.Errorf("alloc within the limit = %q", got)
	}
	if proc, err := c.Exec(step(t), agentclient.Command{Cmd: s.o.Tool, Args: []string{"alloc", "512"}}); err == nil {
		_, _ = proc.Wait() // its stream breaks with the box
	}
	started := time.Now()
	x, err := b.Wait(step(t))
	if err != nil || x.Reason != provider.ReasonOOM {
		t.Errorf("Wait() = %+v, %v, want %s", x, err, provider.ReasonOOM)
	}
	if d := time.Since(started); d > 2*time.Second {
		t.Errorf("the end was told %v after the stream broke, want at most 2 s", d)
	}
	if got := s.tool(t, s.agent(t, neighbour), "echo", "alive"); got != "alive" {
		t.Errorf("neighbour says %q", got)
	}
}

// limitDisk writes more than the disk holds; with a memory limit, also more
// than memory: writes fail, the box lives.
func (s *suite) limitDisk(t *testing.T) {
	p := s.new(t)
	s.needLimit(t, p, provider.LimitDisk)
	spec := s.spec()
	spec.Resources.DiskMiB = 384
	if slices.Contains(p.Capabilities().Limits, provider.LimitMemory) {
		spec.Resources.MemoryMiB = 160
	}
	b := s.create(t, p, spec)
	c := s.agent(t, b)
	var n int
	got := s.tool(t, c, "fill", "/root/big", "600")
	if _, err := fmt.Sscanf(got, "full after %d", &n); err != nil || n < 340 || n > 384 {
		t.Errorf("fill = %q, want full after about 384 MiB", got)
	}
	if got := s.tool(t, c, "echo", "alive"); got != "alive" {
		t.Errorf("echo on a full disk = %q", got)
	}
}

// limitProcesses lets root and a plain user fork without end: both are stopped,
// and the agent still starts commands for the other.
func (s *suite) limitProcesses(t *testing.T) {
	p := s.new(t)
	s.needLimit(t, p, provider.LimitProcesses)
	spec := s.spec()
	spec.Resources.Processes = 64
	c := s.agent(t, s.create(t, p, spec))
	users := []string{"root"}
	if s.o.User != "" {
		users = append(users, s.o.User)
	}
	for _, u := range users {
		var n int
		out, x := s.toolAs(t, c, u, "forks", "500", "300")
		if _, err := fmt.Sscanf(out[strings.LastIndex(out, "started"):], "started %d", &n); err != nil || n < 1 || n > 64 {
			t.Errorf("forks as %s = %q, %s, want between 1 and 64", u, out, x.Status)
		}
	}
	if len(users) > 1 {
		s.agentDuringBomb(t, c, users[1])
	}
}

// agentDuringBomb starts commands while user has all the processes it may have.
func (s *suite) agentDuringBomb(t *testing.T, c *agentclient.Client, user string) {
	t.Helper()
	lines := make(chan string, 4)
	proc, err := c.Exec(step(t), agentclient.Command{
		Cmd: s.o.Tool, Args: []string{"forks", "500", "1500"}, User: user, Stdout: lineWriter(lines), Stderr: lineWriter(lines),
	})
	if err != nil {
		t.Fatalf("Exec(forks) = %v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = proc.Wait() }()
	defer func() { <-done }()
	select {
	case <-lines:
	case <-time.After(patience):
		t.Fatal("forks is silent")
	}
	if out, x := s.toolAs(t, c, "root", "echo", "alive"); out != "alive" || x.Code != 0 {
		t.Errorf("echo during a fork bomb = %q, %s", out, x.Status)
	}
}

func (s *suite) limitCPU(t *testing.T) {
	p := s.new(t)
	s.needLimit(t, p, provider.LimitCPU)
	spec := s.spec()
	spec.Resources.CPUs = 1
	c := s.agent(t, s.create(t, p, spec))
	if got := s.tool(t, c, "cpus"); got != "1" {
		t.Errorf("processors in a box with 1 CPU = %s", got)
	}
}

// unenforceable asks for the limits that the provider does not claim.
func (s *suite) unenforceable(t *testing.T) {
	p := s.new(t)
	for l, set := range map[provider.Limit]func(*provider.Resources){
		provider.LimitMemory: func(r *provider.Resources) { r.MemoryMiB = 512 },
		provider.LimitCPU:    func(r *provider.Resources) { r.CPUs = 1 },
		provider.LimitDisk:   func(r *provider.Resources) { r.DiskMiB = 512 },
	} {
		if slices.Contains(p.Capabilities().Limits, l) {
			continue
		}
		spec := s.spec()
		set(&spec.Resources)
		if b, err := p.Create(step(t), spec); !errors.Is(err, provider.ErrUnenforceable) {
			t.Errorf("Create(limit %s) = %v, %v, want ErrUnenforceable", l, b, err)
		}
	}
}
