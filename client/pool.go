package client

import (
	"context"
	"net/http"
)

// PoolStatus is what a server keeps warm of the templates that the team may use.
type PoolStatus struct {
	// Enabled says whether the server's configuration keeps sandboxes warm.
	Enabled bool `json:"enabled"`
	// HitRate is the share of all creates on the server since it started that
	// found a warm sandbox, from 0 to 1; nil when there was none.
	HitRate *float64 `json:"hitRate,omitempty"`
	// MemoryBytes is of the warm sandboxes in Pools, MemoryLimitBytes the most for
	// all of the server; 0 means no limit.
	MemoryBytes      int64  `json:"memoryBytes"`
	MemoryLimitBytes int64  `json:"memoryLimitBytes"`
	Pools            []Pool `json:"pools"`
	// MissingTemplates are what pool.templates names and there is no template
	// of; only the team default is told.
	MissingTemplates []string `json:"missingTemplates,omitempty"`
}

// Pool is the warm sandboxes of one template build with the same resources. Its
// counts begin with it.
type Pool struct {
	Template     string `json:"template"`
	TemplateName string `json:"templateName,omitempty"`
	BuildID      string `json:"buildID"`
	// Tier is "hot" for sandboxes that run and answer, "prebooted" for those that
	// have nothing in them yet and serve every build on the same image.
	Tier      string    `json:"tier"`
	Resources Resources `json:"resources"`
	// Target is how many there should be now, Hot how many are ready, Making how
	// many are being started.
	Target int `json:"target"`
	Hot    int `json:"hot"`
	Making int `json:"making"`
	// OldestSeconds is the age of the oldest that is ready.
	OldestSeconds int64 `json:"oldestSeconds"`
	MemoryBytes   int64 `json:"memoryBytes"`
	// Hits are the creates that got a warm sandbox, Misses those that found none.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	// Made are the warm sandboxes that were started, Failed those that could not be.
	Made       int64 `json:"made"`
	Failed     int64 `json:"failed"`
	LastFillMs int64 `json:"lastFillMs"` // to start the last one
	// Problem is why the last one could not be started, or why there are fewer
	// than Target.
	Problem string `json:"problem,omitempty"`
}

// Pool asks what is kept warm.
func (c *Client) Pool(ctx context.Context) (PoolStatus, error) {
	var s PoolStatus
	err := c.do(ctx, request{method: http.MethodGet, path: "/pool", out: &s})
	return s, err
}
