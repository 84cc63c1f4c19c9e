package sandbox

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
)

// SnapshotQuota is the most that the snapshots of one team may take together; a
// zero member bounds nothing. Each tag counts as one, with the length of its
// files.
type SnapshotQuota struct {
	Count int
	Bytes int64
}

// Allow refuses one more snapshot of size bytes beside those in use:
// errdefs.ErrResourceExhausted, with the code snapshot_limit.
func (q SnapshotQuota) Allow(team identity.TeamID, used SnapshotQuota, size int64) error {
	var e *apierr.Error
	switch {
	case q.Count > 0 && used.Count >= q.Count:
		e = apierr.New(errdefs.ErrResourceExhausted,
			"team %s has %d snapshots and limits.snapshots_per_team is %d; the sandbox runs on: delete one first, or run `caisson snapshot prune`",
			team, used.Count, q.Count)
		e.Limit = "limits.snapshots_per_team"
	case q.Bytes > 0 && used.Bytes+size > q.Bytes:
		e = apierr.New(errdefs.ErrResourceExhausted,
			"the snapshots of team %s would take %d bytes and limits.snapshot_bytes_per_team is %d; the sandbox runs on: delete some first, or run `caisson snapshot prune`",
			team, used.Bytes+size, q.Bytes)
		e.Limit = "limits.snapshot_bytes_per_team"
	default:
		return nil
	}
	return e.WithCode("snapshot_limit")
}

// maySnapshot refuses what is above the quota before the sandbox is made to stand
// still for it. What it will take is not known yet; a byte is the least.
func (m *Manager) maySnapshot(ctx context.Context, snap template.Snapshot) error {
	if m.cfg.Snapshots == (SnapshotQuota{}) {
		return nil
	}
	used, err := m.deps.Snapshots.SnapshotsUsed(ctx, snap)
	if err != nil {
		return err
	}
	return m.cfg.Snapshots.Allow(snap.Team, used, 1)
}
