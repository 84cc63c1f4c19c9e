package store

import (
	"context"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
)

const auditCounter = "audit"

var _ audit.Log = (*Store)(nil)

// appendEvent writes ev with the next number. It comes last in a transaction:
// the counter's row stays locked until the commit.
func appendEvent(ctx context.Context, q *db.Queries, ev audit.Event) error {
	var p packer
	fields := p.json(ev.Fields)
	if p.err != nil {
		return p.err
	}
	seq, err := q.NextValue(ctx, auditCounter)
	if err != nil {
		return fmt.Errorf("number audit event: %w", err)
	}
	if ev.At.IsZero() {
		ev.At = time.Now()
	}
	err = q.InsertEvent(ctx, db.InsertEventParams{
		Seq: seq, Type: ev.Type, At: millis(ev.At), TeamID: ev.Team, Actor: ev.Actor,
		SandboxID: ev.SandboxID, Reason: text(ev.Reason, maxReason), Fields: fields,
	})
	if err != nil {
		return fmt.Errorf("write audit event: %w", err)
	}
	return nil
}

// Record implements sandbox.Store.
func (s *Store) Record(ctx context.Context, ev audit.Event) error {
	return s.writeAbout(ctx, ev.SandboxID, func(q *db.Queries) error { return appendEvent(ctx, q, ev) })
}

// writeAbout is write for transactions that append an event about a sandbox; it
// wakes those who follow its events.
func (s *Store) writeAbout(ctx context.Context, sandboxID string, fn func(q *db.Queries) error) error {
	if err := s.write(ctx, fn); err != nil {
		return err
	}
	s.events.Committed(sandboxID)
	return nil
}

// SubscribeEvents returns a channel that receives when this process has
// committed audit events about a sandbox; see audit.Notifier.
func (s *Store) SubscribeEvents(sandboxID string) (committed <-chan struct{}, cancel func()) {
	return s.events.Subscribe(sandboxID)
}

// Events implements audit.Log.
func (s *Store) Events(ctx context.Context, f audit.Filter) ([]audit.Event, error) {
	limit := f.Limit
	if limit <= 0 || limit > audit.MaxPage {
		limit = audit.MaxPage
	}
	var rows []db.AuditEvent
	var err error
	switch {
	case f.SandboxID != "":
		rows, err = s.rq.ListSandboxEvents(ctx, db.ListSandboxEventsParams{
			SandboxID: f.SandboxID, TeamID: f.Team, AfterSeq: f.After, Since: millis(f.Since), MaxRows: int32(limit),
		})
	case f.Team != "":
		rows, err = s.rq.ListTeamEvents(ctx, db.ListTeamEventsParams{
			TeamID: f.Team, AfterSeq: f.After, Since: millis(f.Since), MaxRows: int32(limit),
		})
	default:
		rows, err = s.rq.ListEvents(ctx, db.ListEventsParams{AfterSeq: f.After, Since: millis(f.Since), MaxRows: int32(limit)})
	}
	if err != nil {
		return nil, fmt.Errorf("read audit events: %w", err)
	}
	out := make([]audit.Event, len(rows))
	var p packer
	for i, r := range rows {
		out[i] = audit.Event{
			Seq: r.Seq, Type: r.Type, At: fromMillis(r.At), Team: r.TeamID, Actor: r.Actor,
			SandboxID: r.SandboxID, Reason: r.Reason,
		}
		p.parse(r.Fields, &out[i].Fields)
	}
	return out, p.err
}

// PruneEvents deletes audit events older than before.
func (s *Store) PruneEvents(ctx context.Context, before time.Time) (int, error) {
	var n int64
	err := s.write(ctx, func(q *db.Queries) (err error) {
		n, err = q.DeleteEvents(ctx, millis(before))
		return err
	})
	return int(n), err
}
