package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Usage is one line of a report: what a group of sandboxes used.
type Usage struct {
	// Group is the id of the sandbox or team, the name of the template or the
	// value of the label; empty for sandboxes without that label.
	Group string `json:"group"`
	// Runs is how often a sandbox was started or resumed.
	Runs            int     `json:"runs"`
	Sandboxes       int     `json:"sandboxes"`
	WallSeconds     float64 `json:"wallSeconds"`
	CPUSeconds      float64 `json:"cpuSeconds"`
	CPULimitSeconds float64 `json:"cpuLimitSeconds"`
	// MemoryMiBSeconds is what was used, MemoryLimitMiBSeconds what was reserved.
	MemoryMiBSeconds      float64 `json:"memoryMiBSeconds"`
	MemoryLimitMiBSeconds float64 `json:"memoryLimitMiBSeconds"`
	MemoryPeakBytes       int64   `json:"memoryPeakBytes"`
	EgressInBytes         int64   `json:"egressInBytes"`
	EgressOutBytes        int64   `json:"egressOutBytes"`
	SavedMiBHours         float64 `json:"savedMiBHours"`
}

// UsageReport is what the team's sandboxes used in a time.
type UsageReport struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Lines []Usage   `json:"lines"`
	Total Usage     `json:"total"`
}

// UsageOptions select and divide a report.
type UsageOptions struct {
	// From and To bound it; zero means the last 30 days.
	From, To time.Time
	// By is sandbox (also when empty), team, template or label:KEY.
	By string
}

// Usage adds up what the team's sandboxes used.
func (c *Client) Usage(ctx context.Context, o UsageOptions) (UsageReport, error) {
	q := url.Values{}
	for name, at := range map[string]time.Time{"from": o.From, "to": o.To} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if o.By != "" {
		q.Set("group", o.By)
	}
	var r UsageReport
	err := c.do(ctx, request{method: http.MethodGet, path: "/usage", query: q, out: &r})
	return r, err
}
