// Package providertest is the conformance suite of package provider: what every
// isolation backend must do, tried on real boxes through the agent's public
// protocol. A provider's own test calls Run. Only tests import it.
package providertest

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

// patience bounds every single step of the suite.
const patience = 30 * time.Second

// Factory returns a provider without boxes; it registers the provider's clean-up
// with t.
type Factory func(t *testing.T) provider.Provider

// Options adapt the suite to a provider.
type Options struct {
	// Tool is the path of the toolbox as the guest sees it; see BuildRootfs and
	// BuildTool.
	Tool string
	// Rootfs is what boxes are made of.
	Rootfs image.Rootfs
	// User is an unprivileged account of the guest, or empty for none.
	User string
	// Restart ends the given provider as a killed server would, and returns one
	// that takes its boxes over. Nil when boxes do not survive.
	Restart func(t *testing.T, p provider.Provider) provider.Provider
	// Leftovers lists what the provider has on the host; it must be empty when
	// no box exists. Nil when there is nothing to look at.
	Leftovers func(t *testing.T, p provider.Provider) []string
	// OwnNetwork says that a box's network is its own: ports do not collide and
	// every flow meets the attachment.
	OwnNetwork bool
}

// Run tries everything that the provider claims to do.
func Run(t *testing.T, newProvider Factory, o Options) {
	s := &suite{new: newProvider, o: o}
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Lifecycle", s.lifecycle},
		{"Refusals", s.refusals},
		{"List", s.list},
		{"CancelDuringCreate", s.cancelDuringCreate},
		{"Exec", s.exec},
		{"Routes", s.routes},
		{"Restart", s.restart},
		{"Egress", s.egress},
		{"EgressDeniedFromStart", s.egressDenied},
		{"Capabilities", s.capabilities},
		{"LimitMemory", s.limitMemory},
		{"LimitDisk", s.limitDisk},
		{"LimitProcesses", s.limitProcesses},
		{"LimitCPU", s.limitCPU},
		{"UnenforceableLimits", s.unenforceable},
		{"Deadline", s.deadline},
		{"Claim", s.claim},
		{"Preboot", s.prebooted},
		{"PrebootMisfits", s.prebootedMisfits},
		{"PrebootRestore", s.prebootedRestore},
		{"PrebootRestart", s.prebootedRestart},
		{"SnapshotMemory", s.snapshotMemory},
		{"SnapshotFilesystem", s.snapshotFilesystem},
		{"ExportLayer", s.exportLayer},
		{"SnapshotMisfits", s.snapshotMisfits},
		{"Leaks", s.leaks},
	} {
		t.Run(c.name, c.run)
	}
}

type suite struct {
	new Factory
	o   Options
}

func id() string { return strings.ToLower(rand.Text())[:20] }

// spec returns the usual spec; egress denies everything.
func (s *suite) spec() provider.Spec {
	return provider.Spec{SandboxID: id(), Hostname: "box", Rootfs: s.o.Rootfs, Egress: NewRecorder(false)}
}

// create makes a box that the test's end destroys.
func (s *suite) create(t *testing.T, p provider.Provider, spec provider.Spec) provider.Box {
	t.Helper()
	b, err := p.Create(step(t), spec)
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	t.Cleanup(func() { s.destroy(t, b) })
	return b
}

func (s *suite) destroy(t *testing.T, b provider.Box) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.Destroy(ctx); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
}

// step returns the context of one step.
func step(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

const token = "suite-token"

// agent binds an identity to the box and returns a client of its agent.
func (s *suite) agent(t *testing.T, b provider.Box) *agentclient.Client {
	t.Helper()
	err := b.Control().Init(step(t), control.Init{
		SandboxID: b.Handle().ID, AccessToken: token, DefaultUser: "root", Now: time.Now(),
	})
	if err != nil {
		t.Fatalf("Init() = %v", err)
	}
	return s.client(t, b)
}

// client returns a client of an agent that has its identity.
func (s *suite) client(t *testing.T, b provider.Box) *agentclient.Client {
	t.Helper()
	r, err := b.Route(step(t), control.AgentPort)
	if err != nil {
		t.Fatalf("Route(agent) = %v", err)
	}
	c := agentclient.New(r, secret.New(token))
	t.Cleanup(c.Close)
	return c
}

// tool runs the toolbox and returns its output; any status but 0 fails the test.
func (s *suite) tool(t *testing.T, c *agentclient.Client, args ...string) string {
	t.Helper()
	out, x := s.toolAs(t, c, "", args...)
	if !x.Exited || x.Code != 0 {
		t.Fatalf("toolbox %q: %s, output %q", args, x.Status, out)
	}
	return out
}

func (s *suite) toolAs(t *testing.T, c *agentclient.Client, user string, args ...string) (string, agentclient.Exit) {
	t.Helper()
	var out strings.Builder
	p, err := c.Exec(step(t), agentclient.Command{Cmd: s.o.Tool, Args: args, User: user, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("Exec(toolbox %q) = %v", args, err)
	}
	x, err := p.Wait()
	if err != nil {
		t.Fatalf("Wait(toolbox %q) = %v, output %q", args, err, out.String())
	}
	return strings.TrimSpace(out.String()), x
}

// background starts the toolbox and returns when it has written a line.
func (s *suite) background(t *testing.T, c *agentclient.Client, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 16)
	p, err := c.Exec(ctx, agentclient.Command{Cmd: s.o.Tool, Args: args, Stdout: lineWriter(lines), Stderr: lineWriter(lines)})
	if err != nil {
		cancel()
		t.Fatalf("Exec(toolbox %q) = %v", args, err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = p.Wait() }()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case line := <-lines:
		if !strings.Contains(line, "listening") {
			t.Fatalf("toolbox %q said %q", args, line)
		}
	case <-done:
		t.Fatalf("toolbox %q ended", args)
	case <-time.After(patience):
		t.Fatalf("toolbox %q is silent", args)
	}
}

// lineWriter passes on what is written, dropping what nobody takes.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	select {
	case w <- string(b):
	default:
	}
	return len(b), nil
}

// has reports whether the provider lists the box.
func has(t *testing.T, p provider.Provider, h provider.Handle) bool {
	t.Helper()
	hs, err := p.List(step(t))
	if err != nil {
		t.Fatalf("List() = %v", err)
	}
	for _, other := range hs {
		if other.ID == h.ID {
			return true
		}
	}
	return false
}
