package server

import (
	"context"
	"time"
)

// maintainEvery is how often records past their keep are dropped. Nothing
// depends on when exactly.
const maintainEvery = time.Hour

// maintain drops audit events, builds, uploads and images that nothing needs any more.
// The records of sandboxes and flows are pruned by their owners.
func (n *node) maintain(ctx context.Context) error {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	for {
		before := time.Now().Add(-n.cfg.Retention.Sandboxes)
		if _, err := n.home.store.PruneEvents(ctx, time.Now().Add(-n.cfg.Retention.Audit)); err != nil && ctx.Err() == nil {
			n.log.Warn("prune audit events", "error", err)
		}
		if _, err := n.home.store.PruneBuilds(ctx, before); err != nil && ctx.Err() == nil {
			n.log.Warn("prune builds", "error", err)
		}
		if err := n.home.uploads.Sweep(time.Now().Add(-n.cfg.Template.UploadKeep)); err != nil {
			n.log.Warn("remove uploads", "error", err)
		}
		if err := n.builder.GC(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("collect cached steps", "error", err)
		}
		if err := n.home.collectImages(ctx, n.cfg.Build.CacheKeep); err != nil && ctx.Err() == nil {
			n.log.Warn("collect images", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
