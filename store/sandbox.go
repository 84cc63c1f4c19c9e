package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

const (
	maxReason = 1024
	leaseFor  = time.Minute
)

var _ sandbox.Store = (*Store)(nil)

// Insert implements sandbox.Store.
func (s *Store) Insert(ctx context.Context, sb sandbox.Sandbox, maxLive int, evs ...audit.Event) error {
	row, err := packSandbox(sb)
	if err != nil {
		return err
	}
	return s.writeAbout(ctx, row.ID, func(q *db.Queries) error {
		if err := admit(ctx, q, row.TeamID, maxLive); err != nil {
			return err
		}
		if err := claimKey(ctx, q, row); err != nil {
			return err
		}
		// A template deleted since it was resolved must not gain a sandbox: its
		// root filesystem may be collected.
		if n, err := q.SpawnTemplate(ctx, db.SpawnTemplateParams{ID: row.TemplateID, SpawnedAt: row.CreatedAt}); err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("template %q: %w", row.TemplateID, errdefs.ErrNotFound))
		}
		if err := q.InsertSandbox(ctx, insertParams(row)); err != nil {
			return fmt.Errorf("insert sandbox: %w", err)
		}
		if err := s.account(ctx, q, sandbox.Pending, sb); err != nil {
			return err
		}
		for _, ev := range evs {
			if err := appendEvent(ctx, q, eventOf(ev, sb)); err != nil {
				return err
			}
		}
		return nil
	})
}

// claimKey makes the idempotency key of a new record free, or says that another
// record has it: one that did not fail, and whose time with it is not over. The
// caller holds the lock of the team's row, so that two cannot both find it free.
func claimKey(ctx context.Context, q *db.Queries, row db.Sandbox) error {
	if row.IdemKey == "" {
		return nil
	}
	holder, err := q.SandboxByKey(ctx, db.SandboxByKeyParams{TeamID: row.TeamID, IdemKey: row.IdemKey})
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read idempotency key: %w", err)
	}
	if holder.State != string(sandbox.Failed) && holder.IdemUntil > row.CreatedAt {
		return sandbox.ErrKeyTaken
	}
	if err := q.ReleaseKey(ctx, holder.ID); err != nil {
		return fmt.Errorf("release idempotency key: %w", err)
	}
	return nil
}

// ByKey implements sandbox.Store.
func (s *Store) ByKey(ctx context.Context, team identity.TeamID, key string) (sandbox.Sandbox, error) {
	row, err := s.rq.SandboxByKey(ctx, db.SandboxByKeyParams{TeamID: string(team), IdemKey: key})
	if err := found(err, "idempotency key", key); err != nil {
		return sandbox.Sandbox{}, err
	}
	return unpackSandbox(row)
}

// admit refuses when the team has as many live sandboxes as it may. It locks the
// team's row, which makes counting exact on PostgreSQL.
func admit(ctx context.Context, q *db.Queries, team string, maxLive int) error {
	limit, err := q.LockTeam(ctx, team)
	if err := found(err, "team", team); err != nil {
		return err
	}
	source := "the team's own"
	if limit == 0 {
		limit, source = int64(maxLive), "limits.sandboxes_per_team"
	}
	if limit <= 0 {
		return nil
	}
	n, err := q.CountTeamSandboxes(ctx, team)
	if err != nil {
		return fmt.Errorf("count sandboxes: %w", err)
	}
	if n >= limit {
		e := apierr.New(errdefs.ErrResourceExhausted, "team %s has %d live sandboxes and the limit (%s) is %d", team, n, source, limit)
		e.Limit = source
		return e
	}
	return nil
}

// Get implements sandbox.Store.
func (s *Store) Get(ctx context.Context, id sandbox.ID) (sandbox.Sandbox, error) {
	row, err := s.rq.GetSandbox(ctx, string(id))
	if err := found(err, "sandbox", string(id)); err != nil {
		return sandbox.Sandbox{}, err
	}
	return unpackSandbox(row)
}

// Mutate implements sandbox.Store.
func (s *Store) Mutate(ctx context.Context, id sandbox.ID, fn func(*sandbox.Sandbox) (audit.Event, error)) (sandbox.Sandbox, error) {
	return s.mutate(ctx, id, func(*db.Queries, string) error { return nil }, fn)
}

// Admit implements sandbox.Store.
func (s *Store) Admit(ctx context.Context, id sandbox.ID, maxLive int, fn func(*sandbox.Sandbox) (audit.Event, error)) (sandbox.Sandbox, error) {
	return s.mutate(ctx, id, func(q *db.Queries, team string) error { return admit(ctx, q, team, maxLive) }, fn)
}

func (s *Store) mutate(ctx context.Context, id sandbox.ID, first func(q *db.Queries, team string) error, fn func(*sandbox.Sandbox) (audit.Event, error)) (sandbox.Sandbox, error) {
	var out sandbox.Sandbox
	err := s.writeAbout(ctx, string(id), func(q *db.Queries) error {
		row, err := q.GetSandbox(ctx, string(id))
		if err := found(err, "sandbox", string(id)); err != nil {
			return err
		}
		sb, err := unpackSandbox(row)
		if err != nil {
			return err
		}
		if err := first(q, row.TeamID); err != nil {
			return err
		}
		from := sb.State
		ev, err := fn(&sb)
		if err != nil {
			return err
		}
		if !from.CanBecome(sb.State) {
			return fmt.Errorf("sandbox %q cannot go from %s to %s: %w", id, from, sb.State, errdefs.ErrFailedPrecondition)
		}
		next, err := packSandbox(sb)
		if err != nil {
			return err
		}
		n, err := q.UpdateSandbox(ctx, updateParams(next, row.Version))
		if err != nil {
			return fmt.Errorf("update sandbox: %w", err)
		}
		if n == 0 {
			return errConflict
		}
		sb.Version = row.Version + 1
		out = sb
		if err := s.account(ctx, q, from, sb); err != nil {
			return err
		}
		return appendEvent(ctx, q, eventOf(ev, sb))
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return out, nil
}

// Unfinished implements sandbox.Store.
func (s *Store) Unfinished(ctx context.Context) ([]sandbox.Sandbox, error) {
	rows, err := s.rq.UnfinishedSandboxes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read unfinished sandboxes: %w", err)
	}
	return unpackSandboxes(rows)
}

// ClaimExpired implements sandbox.Store.
func (s *Store) ClaimExpired(ctx context.Context, node string, now time.Time, limit int) ([]sandbox.Sandbox, error) {
	ids, err := s.rq.ExpiredSandboxes(ctx, db.ExpiredSandboxesParams{Due: millis(now), Node: node, MaxRows: int32(min(max(limit, 1), 1000))})
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	var claimed []sandbox.Sandbox
	err = s.write(ctx, func(q *db.Queries) error {
		claimed = nil
		for _, id := range ids {
			rows, err := q.LeaseSandbox(ctx, db.LeaseSandboxParams{
				ID: id, Node: node, Due: millis(now), LeasedUntil: millis(now.Add(leaseFor)),
			})
			if err != nil {
				return fmt.Errorf("lease sandbox: %w", err)
			}
			sbs, err := unpackSandboxes(rows)
			if err != nil {
				return err
			}
			claimed = append(claimed, sbs...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}

// NextDeadline implements sandbox.Store.
func (s *Store) NextDeadline(ctx context.Context, node string) (time.Time, error) {
	rows, err := s.rq.NextDeadline(ctx, node)
	if err != nil || len(rows) == 0 {
		return time.Time{}, err
	}
	return fromMillis(rows[0]), nil
}

// Prune implements sandbox.Store. What hangs on a row (egress records,
// synthetic names) goes with it; audit events stay. A row that still has an
// idempotency key stays until that is over.
func (s *Store) Prune(ctx context.Context, before time.Time) (int, error) {
	total := 0
	for {
		ids, err := s.rq.EndedSandboxes(ctx, db.EndedSandboxesParams{Before: millis(before), Now: millis(time.Now())})
		if err != nil || len(ids) == 0 {
			return total, err
		}
		n := 0
		err = s.write(ctx, func(q *db.Queries) error {
			n = 0
			for _, id := range ids {
				deleted, err := q.DeleteSandbox(ctx, id)
				if err != nil {
					return fmt.Errorf("delete sandbox: %w", err)
				}
				n += int(deleted)
				if err := q.DeleteSandboxRecords(ctx, id); err != nil {
					return fmt.Errorf("delete egress records: %w", err)
				}
				if err := q.DeleteSandboxNames(ctx, id); err != nil {
					return fmt.Errorf("delete egress names: %w", err)
				}
			}
			return nil
		})
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}

// eventOf fills what an event says of its sandbox.
func eventOf(ev audit.Event, sb sandbox.Sandbox) audit.Event {
	ev.SandboxID, ev.Team = string(sb.ID), string(sb.Team)
	return ev
}

func packSandbox(sb sandbox.Sandbox) (db.Sandbox, error) {
	var p packer
	listed := sb.StartedAt
	if listed.IsZero() {
		listed = sb.CreatedAt
	}
	row := db.Sandbox{
		ID:         string(sb.ID),
		TeamID:     string(sb.Team),
		TemplateID: string(sb.Template),
		Alias:      sb.Alias,
		Name:       sb.Name,
		BuildID:    string(sb.Build),
		State:      string(sb.State),
		Reason:     text(sb.Reason, maxReason),
		Node:       sb.Node,
		Handle:     p.json(sb.Handle),
		Network:    p.json(sb.Network),
		Egress:     p.json(sb.Egress),
		Resources:  p.json(sb.Resources),
		Parent:     string(sb.Parent),
		Metadata:   p.json(sb.Metadata),
		CreatedAt:  millis(sb.CreatedAt),
		StartedAt:  millis(sb.StartedAt),
		EndsAt:     millis(sb.EndsAt),
		EndedAt:    millis(sb.EndedAt),
		ListedAt:   millis(listed),
		OnTimeout:  sb.OnTimeout,
		Lifecycle:  p.json(sb.Lifecycle),
		Sealed:     sb.Sealed,
		Saved:      p.json(sb.Saved),
		Origin:     p.json(sb.Origin),
		IdemKey:    sb.Idempotency.Key,
		IdemPrint:  sb.Idempotency.Fingerprint,
		IdemUntil:  millis(sb.Idempotency.Until),
	}
	return row, p.err
}

func unpackSandbox(row db.Sandbox) (sandbox.Sandbox, error) {
	var p packer
	sb := sandbox.Sandbox{
		ID:        sandbox.ID(row.ID),
		Team:      identity.TeamID(row.TeamID),
		Template:  template.ID(row.TemplateID),
		Alias:     row.Alias,
		Name:      row.Name,
		Build:     template.BuildID(row.BuildID),
		State:     sandbox.State(row.State),
		Reason:    row.Reason,
		Node:      row.Node,
		Parent:    snapshot.ID(row.Parent),
		CreatedAt: fromMillis(row.CreatedAt),
		StartedAt: fromMillis(row.StartedAt),
		EndsAt:    fromMillis(row.EndsAt),
		EndedAt:   fromMillis(row.EndedAt),
		OnTimeout: row.OnTimeout,
		Sealed:    row.Sealed,
		Version:   row.Version,
		Idempotency: sandbox.Idempotency{
			Key: row.IdemKey, Fingerprint: row.IdemPrint, Until: fromMillis(row.IdemUntil),
		},
	}
	p.parse(row.Handle, &sb.Handle)
	p.parse(row.Network, &sb.Network)
	p.parse(row.Egress, &sb.Egress)
	p.parse(row.Resources, &sb.Resources)
	p.parse(row.Metadata, &sb.Metadata)
	p.parse(row.Lifecycle, &sb.Lifecycle)
	p.parse(row.Saved, &sb.Saved)
	p.parse(row.Origin, &sb.Origin)
	if p.err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox %q: %w", row.ID, p.err)
	}
	return sb, nil
}

func unpackSandboxes(rows []db.Sandbox) ([]sandbox.Sandbox, error) {
	out := make([]sandbox.Sandbox, 0, len(rows))
	for _, row := range rows {
		sb, err := unpackSandbox(row)
		if err != nil {
			return nil, err
		}
		out = append(out, sb)
	}
	return out, nil
}

func insertParams(r db.Sandbox) db.InsertSandboxParams {
	return db.InsertSandboxParams{
		ID: r.ID, TeamID: r.TeamID, TemplateID: r.TemplateID, Alias: r.Alias, Name: r.Name,
		BuildID: r.BuildID, State: r.State, Reason: r.Reason, Node: r.Node, Handle: r.Handle,
		Network: r.Network, Egress: r.Egress, Resources: r.Resources, Parent: r.Parent,
		Metadata: r.Metadata, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndsAt: r.EndsAt,
		EndedAt: r.EndedAt, ListedAt: r.ListedAt, OnTimeout: r.OnTimeout,
		Lifecycle: r.Lifecycle, Sealed: r.Sealed, Saved: r.Saved, Origin: r.Origin,
		IdemKey: r.IdemKey, IdemPrint: r.IdemPrint, IdemUntil: r.IdemUntil,
	}
}

func updateParams(r db.Sandbox, version int64) db.UpdateSandboxParams {
	return db.UpdateSandboxParams{
		ID: r.ID, Version: version, State: r.State, Reason: r.Reason, Node: r.Node,
		Handle: r.Handle, Network: r.Network, Egress: r.Egress, Resources: r.Resources,
		Metadata: r.Metadata, StartedAt: r.StartedAt, EndsAt: r.EndsAt, EndedAt: r.EndedAt,
		ListedAt: r.ListedAt, OnTimeout: r.OnTimeout,
		Lifecycle: r.Lifecycle, Sealed: r.Sealed, Saved: r.Saved, IdemKey: r.IdemKey,
	}
}
