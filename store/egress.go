package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

const maxRecordPage = 1000

var _ egress.NameStore = (*Store)(nil)

// Records returns one page of a sandbox's egress records in order of Seq, after
// the Seq given; limit is 1..1000, 0 means 1000. The caller has checked that
// the sandbox may be seen.
func (s *Store) Records(ctx context.Context, sandboxID string, after int64, limit int) ([]egress.Record, error) {
	if limit <= 0 || limit > maxRecordPage {
		limit = maxRecordPage
	}
	rows, err := s.rq.ListRecords(ctx, db.ListRecordsParams{SandboxID: sandboxID, AfterSeq: after, MaxRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("read egress records: %w", err)
	}
	out := make([]egress.Record, len(rows))
	for i, r := range rows {
		addr, _ := netip.ParseAddr(r.Addr) //nolint:errcheck // "" stands for no address
		out[i] = egress.Record{
			Seq: r.Seq, SandboxID: r.SandboxID, At: fromMillis(r.At), Kind: r.Kind, Host: r.Host, Addr: addr,
			Port: uint16(r.Port), Verdict: egress.Verdict(r.Verdict), Reason: r.Reason, Hint: r.Hint,
			BytesIn: r.BytesIn, BytesOut: r.BytesOut, Duration: time.Duration(r.DurationUs) * time.Microsecond,
		}
	}
	return out, nil
}

// Names implements egress.NameStore.
func (s *Store) Names(ctx context.Context, sandboxID string) (map[string]netip.Addr, error) {
	rows, err := s.rq.Names(ctx, sandboxID)
	if err != nil {
		return nil, fmt.Errorf("read names: %w", err)
	}
	out := make(map[string]netip.Addr, len(rows))
	for _, r := range rows {
		addr, err := netip.ParseAddr(r.Addr)
		if err != nil {
			return nil, fmt.Errorf("stored address of name: %w", err)
		}
		out[r.Name] = addr
	}
	return out, nil
}

// PutName implements egress.NameStore.
func (s *Store) PutName(ctx context.Context, sandboxID, name string, addr netip.Addr) error {
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.AddName(ctx, db.AddNameParams{SandboxID: sandboxID, Name: name, Addr: addr.String()})
		if err != nil || n > 0 {
			return err
		}
		have, err := q.GetName(ctx, db.GetNameParams{SandboxID: sandboxID, Name: name})
		if err != nil {
			return fmt.Errorf("read name: %w", err)
		}
		if len(have) == 1 && have[0] == addr.String() {
			return nil
		}
		return fmt.Errorf("name or address is already given in sandbox %s: %w", sandboxID, errdefs.ErrAlreadyExists)
	})
}

// CopyNames implements egress.NameStore.
func (s *Store) CopyNames(ctx context.Context, from, to string) error {
	return s.write(ctx, func(q *db.Queries) error {
		return q.CopyNames(ctx, db.CopyNamesParams{FromSandbox: from, ToSandbox: to})
	})
}

// SwapNames implements sandbox.Snapshots.
func (s *Store) SwapNames(ctx context.Context, id sandbox.ID, from string, kept snapshot.ID) error {
	return s.write(ctx, func(q *db.Queries) error {
		if err := q.DeleteSandboxNames(ctx, string(kept)); err != nil {
			return fmt.Errorf("delete names: %w", err)
		}
		if _, err := q.MoveNames(ctx, db.MoveNamesParams{FromSandbox: string(id), ToSandbox: string(kept)}); err != nil {
			return fmt.Errorf("keep names: %w", err)
		}
		// That there were none is to be remembered, too.
		if _, err := q.AddName(ctx, db.AddNameParams{SandboxID: string(kept)}); err != nil {
			return fmt.Errorf("keep names: %w", err)
		}
		return q.CopyNames(ctx, db.CopyNamesParams{FromSandbox: from, ToSandbox: string(id)})
	})
}

// SettleNames implements sandbox.Snapshots.
func (s *Store) SettleNames(ctx context.Context, id sandbox.ID, kept snapshot.ID, back bool) error {
	have, err := s.rq.Names(ctx, string(kept))
	if err != nil || len(have) == 0 {
		return err
	}
	return s.write(ctx, func(q *db.Queries) error {
		if !back {
			return q.DeleteSandboxNames(ctx, string(kept))
		}
		if err := q.DeleteSandboxNames(ctx, string(id)); err != nil {
			return fmt.Errorf("delete names: %w", err)
		}
		if _, err := q.MoveNames(ctx, db.MoveNamesParams{FromSandbox: string(kept), ToSandbox: string(id)}); err != nil {
			return fmt.Errorf("restore names: %w", err)
		}
		return q.DeleteMark(ctx, string(id))
	})
}
