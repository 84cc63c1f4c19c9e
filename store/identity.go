package store

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/containerd/errdefs"
)

var (
	_ identity.TeamStore = (*Store)(nil)
	_ identity.KeyStore  = (*Store)(nil)
)

// EnsureTeam implements identity.TeamStore.
func (s *Store) EnsureTeam(ctx context.Context, t identity.Team) (created bool, err error) {
	if t.MaxSandboxes < 0 {
		return false, fmt.Errorf("team limit is negative: %w", errdefs.ErrInvalidArgument)
	}
	err = s.write(ctx, func(q *db.Queries) error {
		n, err := q.InsertTeam(ctx, db.InsertTeamParams{
			ID: string(t.ID), Name: t.Name, MaxSandboxes: int64(t.MaxSandboxes), CreatedAt: millis(t.CreatedAt),
		})
		if err != nil {
			return fmt.Errorf("insert team: %w", err)
		}
		if created = n > 0; !created {
			return nil
		}
		return appendEvent(ctx, q, audit.Event{Type: "team.created", Team: string(t.ID), Actor: identity.System.KeyID})
	})
	return created, err
}

// GetTeam implements identity.TeamStore.
func (s *Store) GetTeam(ctx context.Context, id identity.TeamID) (identity.Team, error) {
	row, err := s.rq.GetTeam(ctx, string(id))
	if err := found(err, "team", string(id)); err != nil {
		return identity.Team{}, err
	}
	return unpackTeam(row), nil
}

// ListTeams implements identity.TeamStore.
func (s *Store) ListTeams(ctx context.Context) ([]identity.Team, error) {
	rows, err := s.rq.ListTeams(ctx)
	if err != nil {
		return nil, fmt.Errorf("list teams: %w", err)
	}
	out := make([]identity.Team, len(rows))
	for i, row := range rows {
		out[i] = unpackTeam(row)
	}
	return out, nil
}

func unpackTeam(row db.Team) identity.Team {
	return identity.Team{
		ID: identity.TeamID(row.ID), Name: row.Name, MaxSandboxes: int(row.MaxSandboxes), CreatedAt: fromMillis(row.CreatedAt),
	}
}

// SetTeamLimit implements identity.TeamStore.
func (s *Store) SetTeamLimit(ctx context.Context, id identity.TeamID, maxSandboxes int, actor string) error {
	if maxSandboxes < 0 {
		return fmt.Errorf("team limit is negative: %w", errdefs.ErrInvalidArgument)
	}
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.SetTeamLimit(ctx, db.SetTeamLimitParams{ID: string(id), MaxSandboxes: int64(maxSandboxes)})
		if err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("team %q: %w", id, errdefs.ErrNotFound))
		}
		return appendEvent(ctx, q, audit.Event{
			Type: "team.limit_set", Team: string(id), Actor: actor,
			Fields: map[string]string{"maxSandboxes": strconv.Itoa(maxSandboxes)},
		})
	})
}

// InsertKey implements identity.KeyStore.
func (s *Store) InsertKey(ctx context.Context, k identity.Key, hash, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		_, err := q.GetTeam(ctx, string(k.Team))
		if err := found(err, "team", string(k.Team)); err != nil {
			return err
		}
		err = q.InsertKey(ctx, db.InsertKeyParams{
			ID: k.ID, TeamID: string(k.Team), Name: k.Name, Hash: hash, Mask: k.Mask, CreatedAt: millis(k.CreatedAt),
		})
		if err != nil {
			return fmt.Errorf("insert key: %w", err)
		}
		return appendEvent(ctx, q, keyEvent("key.created", k.Team, k.ID, actor))
	})
}

// KeyByHash implements identity.KeyStore.
func (s *Store) KeyByHash(ctx context.Context, hash string) (identity.Key, error) {
	row, err := s.rq.KeyByHash(ctx, hash)
	// The hash stays out of the error text.
	if err := found(err, "key", "of this hash"); err != nil {
		return identity.Key{}, err
	}
	return unpackKey(row), nil
}

// ListKeys implements identity.KeyStore.
func (s *Store) ListKeys(ctx context.Context, team identity.TeamID) ([]identity.Key, error) {
	rows, err := s.rq.ListKeys(ctx, string(team))
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	out := make([]identity.Key, len(rows))
	for i, row := range rows {
		out[i] = unpackKey(row)
	}
	return out, nil
}

func unpackKey(row db.ApiKey) identity.Key {
	return identity.Key{
		ID: row.ID, Team: identity.TeamID(row.TeamID), Name: row.Name, Mask: row.Mask,
		CreatedAt: fromMillis(row.CreatedAt), LastUsedAt: fromMillis(row.LastUsedAt),
	}
}

// CountKeys implements identity.KeyStore.
func (s *Store) CountKeys(ctx context.Context) (int, error) {
	n, err := s.rq.CountKeys(ctx)
	return int(n), err
}

// RevokeKey implements identity.KeyStore.
func (s *Store) RevokeKey(ctx context.Context, team identity.TeamID, id string, at time.Time, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.RevokeKey(ctx, db.RevokeKeyParams{TeamID: string(team), ID: id, RevokedAt: millis(at)})
		if err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("key %q: %w", id, errdefs.ErrNotFound))
		}
		return appendEvent(ctx, q, keyEvent("key.revoked", team, id, actor))
	})
}

// TouchKeys implements identity.KeyStore.
func (s *Store) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	return s.write(ctx, func(q *db.Queries) error {
		for id, at := range used {
			if err := q.TouchKey(ctx, db.TouchKeyParams{ID: id, LastUsedAt: millis(at)}); err != nil {
				return fmt.Errorf("write last use of key: %w", err)
			}
		}
		return nil
	})
}

func keyEvent(kind string, team identity.TeamID, key, actor string) audit.Event {
	return audit.Event{Type: kind, Team: string(team), Actor: actor, Fields: map[string]string{"key": key}}
}
