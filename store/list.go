package store

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

const (
	maxPage   = 100
	chunkRows = 500
)

// position is a place in a listing: after the row with this time and id.
type position struct {
	at int64
	id string
}

func parseCursor(s string, ascending bool) (position, error) {
	if s == "" {
		if ascending {
			return position{at: math.MinInt64}, nil
		}
		return position{at: math.MaxInt64}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	at, rest, ok := strings.Cut(string(raw), "__")
	id, order, ok2 := strings.Cut(rest, "__")
	ms, err2 := strconv.ParseInt(at, 10, 64)
	if err != nil || err2 != nil || !ok || !ok2 || order != direction(ascending) {
		return position{}, fmt.Errorf("paging token is not one that this listing gave: %w", errdefs.ErrInvalidArgument)
	}
	return position{at: ms, id: text(id, 256)}, nil
}

func (p position) cursor(ascending bool) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d__%s__%s", p.at, p.id, direction(ascending)))
}

func direction(ascending bool) string {
	if ascending {
		return "asc"
	}
	return "desc"
}

// List implements sandbox.Store.
func (s *Store) List(ctx context.Context, f sandbox.Filter) (page []sandbox.Sandbox, next string, running int, err error) {
	from, err := parseCursor(f.Cursor, f.Ascending)
	if err != nil {
		return nil, "", 0, err
	}
	limit := f.Limit
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	teams, err := s.teamsOf(ctx, f)
	if err != nil {
		return nil, "", 0, err
	}
	// One row more than asked for tells whether there is another page.
	var rows []db.Sandbox
	for _, team := range teams {
		some, err := s.listTeam(ctx, f, team, from, limit+1)
		if err != nil {
			return nil, "", 0, fmt.Errorf("list sandboxes: %w", err)
		}
		rows = append(rows, some...)
		n, err := s.countRunning(ctx, f, team)
		if err != nil {
			return nil, "", 0, fmt.Errorf("count sandboxes: %w", err)
		}
		running += n
	}
	if len(teams) > 1 {
		slices.SortFunc(rows, func(a, b db.Sandbox) int {
			c := cmp.Or(cmp.Compare(a.ListedAt, b.ListedAt), cmp.Compare(a.ID, b.ID))
			if f.Ascending {
				return c
			}
			return -c
		})
	}
	if len(rows) > limit {
		last := rows[limit-1]
		next = position{at: last.ListedAt, id: last.ID}.cursor(f.Ascending)
		rows = rows[:limit]
	}
	page, err = unpackSandboxes(rows)
	return page, next, running, err
}

func (s *Store) teamsOf(ctx context.Context, f sandbox.Filter) ([]string, error) {
	if f.Team != "" {
		return []string{string(f.Team)}, nil
	}
	all, err := s.rq.ListTeams(ctx)
	if err != nil {
		return nil, fmt.Errorf("list teams: %w", err)
	}
	ids := make([]string, len(all))
	for i, t := range all {
		ids[i] = t.ID
	}
	return ids, nil
}

// listTeam returns up to limit rows of one team after from. Metadata is matched
// here: the live rows of a team are few, and JSON in SQL is not portable.
func (s *Store) listTeam(ctx context.Context, f sandbox.Filter, team string, from position, limit int) ([]db.Sandbox, error) {
	states, err := paddedStates(f.States)
	if err != nil {
		return nil, err
	}
	chunk := limit
	if len(f.Metadata) > 0 {
		chunk = chunkRows
	}
	var out []db.Sandbox
	for {
		rows, err := s.listChunk(ctx, f, team, states, from, chunk)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			ok, err := matches(row.Metadata, f.Metadata)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, row)
			}
			if len(out) == limit {
				return out, nil
			}
		}
		if len(rows) < chunk {
			return out, nil
		}
		last := rows[len(rows)-1]
		from = position{at: last.ListedAt, id: last.ID}
	}
}

func (s *Store) listChunk(ctx context.Context, f sandbox.Filter, team string, st [8]string, from position, limit int) ([]db.Sandbox, error) {
	if f.Ascending {
		return s.rq.ListSandboxesAscending(ctx, db.ListSandboxesAscendingParams{
			TeamID: team, TemplateID: string(f.Template), Since: millis(f.StartedAfter),
			State1: st[0], State2: st[1], State3: st[2], State4: st[3],
			State5: st[4], State6: st[5], State7: st[6], State8: st[7],
			AfterAt: from.at, AfterID: from.id, MaxRows: int32(limit),
		})
	}
	return s.rq.ListSandboxesDescending(ctx, db.ListSandboxesDescendingParams{
		TeamID: team, TemplateID: string(f.Template), Since: millis(f.StartedAfter),
		State1: st[0], State2: st[1], State3: st[2], State4: st[3],
		State5: st[4], State6: st[5], State7: st[6], State8: st[7],
		BeforeAt: from.at, BeforeID: from.id, MaxRows: int32(limit),
	})
}

// paddedStates fills the eight places of the queries by repeating the last.
func paddedStates(states []sandbox.State) ([8]string, error) {
	if len(states) == 0 {
		states = sandbox.Unfinished()
	}
	var out [8]string
	if len(states) > len(out) {
		return out, fmt.Errorf("at most %d states can be asked for: %w", len(out), errdefs.ErrInvalidArgument)
	}
	for i := range out {
		out[i] = string(states[min(i, len(states)-1)])
	}
	return out, nil
}

// countRunning counts the Running rows that match, before paging.
func (s *Store) countRunning(ctx context.Context, f sandbox.Filter, team string) (int, error) {
	if len(f.States) > 0 && !slices.Contains(f.States, sandbox.Running) {
		return 0, nil
	}
	if len(f.Metadata) == 0 {
		n, err := s.rq.CountRunning(ctx, db.CountRunningParams{
			TeamID: team, TemplateID: string(f.Template), Since: millis(f.StartedAfter),
		})
		return int(n), err
	}
	rows, err := s.rq.RunningMetadata(ctx, db.RunningMetadataParams{
		TeamID: team, TemplateID: string(f.Template), Since: millis(f.StartedAfter),
	})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		ok, err := matches(row, f.Metadata)
		if err != nil {
			return 0, err
		}
		if ok {
			n++
		}
	}
	return n, nil
}

// matches reports whether the stored metadata holds every wanted pair.
func matches(stored string, want map[string]string) (bool, error) {
	if len(want) == 0 {
		return true, nil
	}
	var p packer
	var have map[string]string
	p.parse(stored, &have)
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false, p.err
		}
	}
	return true, p.err
}
