package soak

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// fork makes two copies of the sandbox, which must know what it knows.
func (l *life) fork(ctx context.Context) error {
	var made []struct {
		Sandbox testenv.Box
		Error   *struct{ Message string }
	}
	err := l.do(ctx, "fork", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodPost, "/sandboxes/"+l.box.ID+"/fork", map[string]any{"count": 2, "timeout": 600}, &made)
	})
	if err != nil {
		return err
	}
	l.forks.Add(1)
	var errs []error
	for _, m := range made {
		if m.Error != nil {
			errs = append(errs, errors.New("fork: "+m.Error.Message))
			continue
		}
		errs = append(errs, l.copied(ctx, m.Sandbox))
	}
	return errors.Join(errs...)
}

// snapshot saves the sandbox and makes another one of that.
func (l *life) snapshot(ctx context.Context) error {
	var snap struct{ SnapshotID string }
	err := l.do(ctx, "snapshot", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodPost, "/sandboxes/"+l.box.ID+"/snapshots", map[string]any{}, &snap)
	})
	if err != nil {
		return err
	}
	l.snapshots.Add(1)
	var box testenv.Box
	err = l.do(ctx, "create from snapshot", func(ctx context.Context) (err error) {
		box, err = l.s.Create(ctx, map[string]any{"templateID": snap.SnapshotID})
		return err
	})
	if err == nil {
		err = l.copied(ctx, box)
	}
	gone := l.untilDone(ctx, "delete snapshot", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodDelete, "/templates/"+url.PathEscape(snap.SnapshotID), nil, nil)
	})
	return errors.Join(err, gone)
}

// copied checks a copy and ends it.
func (l *life) copied(ctx context.Context, box testenv.Box) error {
	child := &life{run: l.run, rng: l.rng, epoch: l.epoch, box: box, sums: l.sums, pid: l.pid}
	err := child.check(ctx)
	child.end(ctx)
	return err
}

func (r *run) deleteSnapshots(ctx context.Context) error {
	for {
		var all []struct{ SnapshotID string }
		if err := r.s.API(ctx, http.MethodGet, "/snapshots?limit=100", nil, &all); err != nil || len(all) == 0 {
			return err
		}
		for _, s := range all {
			if err := r.s.API(ctx, http.MethodDelete, "/templates/"+url.PathEscape(s.SnapshotID), nil, nil); err != nil {
				return err
			}
		}
	}
}
