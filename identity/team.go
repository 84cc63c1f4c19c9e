package identity

import (
	"context"
	"time"
)

// Team owns sandboxes, templates and keys.
type Team struct {
	ID   TeamID `json:"id"`
	Name string `json:"name"`
	// MaxSandboxes caps the team's live sandboxes; zero means the server's
	// default.
	MaxSandboxes int       `json:"maxSandboxes"`
	CreatedAt    time.Time `json:"createdAt"`
}

// TeamStore keeps teams; implemented by package store.
type TeamStore interface {
	// EnsureTeam inserts t unless a team with its id exists, and reports
	// whether it did.
	EnsureTeam(ctx context.Context, t Team) (created bool, err error)
	GetTeam(ctx context.Context, id TeamID) (Team, error)
	ListTeams(ctx context.Context) ([]Team, error)
	// SetTeamLimit sets MaxSandboxes; errdefs.ErrNotFound for unknown teams.
	SetTeamLimit(ctx context.Context, id TeamID, maxSandboxes int, actor string) error
}
