package server

import (
	"context"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
)

// newMeter measures the sandboxes of the manager, which is made after it, and
// gives the store its last word on each run.
func (n *node) newMeter() (*meter.Meter, error) {
	m, err := meter.New(meter.Config{
		Interval:    n.cfg.Metrics.Interval,
		KeepSamples: n.cfg.Retention.Metrics,
		KeepRuns:    n.cfg.Retention.Usage,
	}, meter.Deps{
		Store: n.home.store,
		Boxes: func(yield func(string, <-chan struct{}) bool) {
			n.manager.EachLive(func(l *sandbox.Live) bool { return yield(string(l.ID), l.Gone) })
		},
		Stats: func(ctx context.Context, id string) (provider.Stats, error) {
			return n.manager.Stats(ctx, identity.System, sandbox.ID(id))
		},
		Traffic: n.gateway.Traffic,
		Measured: func(id string, t meter.Total) {
			n.manager.Spend(sandbox.ID(id), sandbox.Budget{CPU: t.CPU, Wall: t.Wall, EgressBytes: t.EgressBytes})
		},
		Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.home.store.MeterWith(m)
	return m, nil
}

// closing takes the last sample of a run.
func (n *node) closing(ctx context.Context, l *sandbox.Live, box provider.Box) {
	n.meter.Last(ctx, string(l.ID), l.Gone, box)
}
