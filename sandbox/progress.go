package sandbox

import (
	"context"

	"github.com/caisson-dev/caisson/identity"
)

// Stage is what a create is about to do, as its caller may be told. The Stage
// constants of Metrics are finer, and say where a create failed.
type Stage string

// The stages, in their order. A create takes some of them: one that finds a
// warm box claims it, one of a snapshot restores it, any other starts one.
const (
	Queued    Stage = "queued"    // it waits for its turn, and may yet be refused
	Claiming  Stage = "claiming"  // a warm box becomes this sandbox
	Restoring Stage = "restoring" // memory and files of a snapshot
	Starting  Stage = "starting"  // a box boots
	Preparing Stage = "preparing" // the agent gets its identity
	Ready     Stage = "ready"     // commands can be run
)

// enter notes where the create is, and tells its caller.
func (c *creation) enter(stage string) {
	c.stage = stage
	if c.req.Progress == nil {
		return
	}
	switch {
	case stage == StageQueue:
		c.req.Progress(Queued)
	case stage == StageBox && c.warm != nil:
		c.req.Progress(Claiming)
	case stage == StageBox && c.from != nil:
		c.req.Progress(Restoring)
	case stage == StageBox:
		c.req.Progress(Starting)
	case stage == StageAgent:
		c.req.Progress(Preparing)
	}
}

// ready tells the caller of the last stage.
func (c *creation) ready() {
	if c.req.Progress != nil {
		c.req.Progress(Ready)
	}
}

// Check refuses what Create would refuse for what it asks for, and does nothing.
func (m *Manager) Check(ctx context.Context, who identity.Principal, r CreateRequest) error {
	_, err := m.plan(ctx, who, r)
	return err
}
