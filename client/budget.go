package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Budget is the most that a sandbox may use over all its runs; a zero member
// means the server's limit, if there is one.
type Budget struct {
	CPUSeconds  int64 `json:"cpuSeconds,omitempty"`
	WallSeconds int64 `json:"wallSeconds,omitempty"`
	// EgressBytes counts both directions of the connections it opens.
	EgressBytes int64 `json:"egressBytes,omitempty"`
	// Spent names the member that is used up, while the sandbox may not be
	// resumed for that. It cannot be set.
	Spent string `json:"spent,omitempty"`
}

// SetBudget gives a sandbox another budget for all of its life. One that was
// paused because its budget was spent can be resumed then.
func (c *Client) SetBudget(ctx context.Context, id string, b Budget) (Sandbox, error) {
	b.Spent = ""
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodPut, path: "/sandboxes/" + url.PathEscape(id) + "/budget", in: b, out: &sb})
	return sb, err
}

// BudgetOfTeam is the most that all sandboxes of a team may use in each period;
// zero members bound nothing.
type BudgetOfTeam struct {
	CPUSeconds  int64 `json:"cpuSeconds"`
	WallSeconds int64 `json:"wallSeconds"`
	EgressBytes int64 `json:"egressBytes"`
	// Period is day or month, of the calendar in UTC.
	Period string `json:"period"`
}

// TeamBudget is how a team stands in its period.
type TeamBudget struct {
	Team string `json:"team"`
	BudgetOfTeam
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Own says that it was set for this team; otherwise it is the server's.
	Own  bool     `json:"own"`
	Used TeamUsed `json:"used"`
	// Spent is cpu, wall or egress when that is used up: nothing is started
	// before Until then.
	Spent string `json:"spent,omitempty"`
}

// TeamUsed is what a team has used in its period.
type TeamUsed struct {
	CPUSeconds  float64 `json:"cpuSeconds"`
	WallSeconds float64 `json:"wallSeconds"`
	EgressBytes int64   `json:"egressBytes"`
}

// TeamBudget returns the budget of the key's team.
func (c *Client) TeamBudget(ctx context.Context) (TeamBudget, error) {
	var b TeamBudget
	err := c.do(ctx, request{method: http.MethodGet, path: "/budget", out: &b})
	return b, err
}

// Metric is what a sandbox used at a time.
type Metric struct {
	At   time.Time `json:"at"`
	CPUs int       `json:"cpus"`
	// CPUPercent is the share of all CPUs together.
	CPUPercent  float64 `json:"cpuPercent"`
	MemoryBytes int64   `json:"memoryBytes"`
	// MemoryTotal and DiskTotal are the limits, 0 for none.
	MemoryTotal int64 `json:"memoryTotal"`
	CacheBytes  int64 `json:"cacheBytes"`
	DiskBytes   int64 `json:"diskBytes"`
	DiskTotal   int64 `json:"diskTotal"`
}

// Metrics returns what a sandbox used between two times, in order; zero times are
// ten minutes ago and now. It also works after the end of the sandbox.
func (c *Client) Metrics(ctx context.Context, id string, from, to time.Time) ([]Metric, error) {
	q := url.Values{}
	for name, at := range map[string]time.Time{"from": from, "to": to} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	var out struct {
		Points []Metric `json:"points"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/sandboxes/" + url.PathEscape(id) + "/metrics", query: q, out: &out})
	return out.Points, err
}
