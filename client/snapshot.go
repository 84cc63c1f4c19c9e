package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Snapshot is a sandbox that was saved with its memory, as a template.
type Snapshot struct {
	// ID is what CreateOptions.Template takes: team/name:tag, or template:tag
	// for a snapshot without a name.
	ID       string `json:"id"`
	Name     string `json:"name,omitempty"`
	Tag      string `json:"tag"`
	Template string `json:"template"`
	BuildID  string `json:"buildID"`
	// Sandbox is the id of its source.
	Sandbox string `json:"sandbox"`
	// Resources are those that its sandboxes have; they cannot be changed.
	Resources Resources `json:"resources"`
	SizeBytes int64     `json:"sizeBytes"`
	// Engine saved it; another cannot restore it.
	Engine    string    `json:"engine"`
	CreatedAt time.Time `json:"createdAt"`
}

// Origin says of what a sandbox is a copy.
type Origin struct {
	// Sandbox is the id of the one that was forked or saved.
	Sandbox string `json:"sandbox"`
	// Snapshot is the id that the snapshot had, empty for a fork.
	Snapshot string `json:"snapshot,omitempty"`
}

// CreateSnapshot saves a running sandbox, which runs on. name is
// [team/]name[:tag] or empty; one that was used before means the same template,
// and its tag moves. While the sandbox is being saved already it is
// errdefs.ErrConflict.
func (c *Client) CreateSnapshot(ctx context.Context, id, name string) (Snapshot, error) {
	body := struct {
		Name string `json:"name,omitempty"`
	}{name}
	var snap Snapshot
	err := c.do(ctx, request{method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/snapshots", in: body, out: &snap})
	return snap, err
}

// SnapshotListOptions select snapshots.
type SnapshotListOptions struct {
	// Sandbox, when set, is the id of the source.
	Sandbox string
	// Limit is the page size, at most 100; 0 means 100.
	Limit int
}

// Snapshots yields the team's snapshots, newest first, page by page. It ends
// after the first error.
func (c *Client) Snapshots(ctx context.Context, o SnapshotListOptions) iter.Seq2[Snapshot, error] {
	return func(yield func(Snapshot, error) bool) {
		q := url.Values{}
		if o.Sandbox != "" {
			q.Set("sandbox", o.Sandbox)
		}
		if o.Limit > 0 {
			q.Set("limit", strconv.Itoa(o.Limit))
		}
		for {
			var page []Snapshot
			var h http.Header
			if err := c.do(ctx, request{method: http.MethodGet, path: "/snapshots", query: q, out: &page, header: &h}); err != nil {
				yield(Snapshot{}, err)
				return
			}
			for _, snap := range page {
				if !yield(snap, nil) {
					return
				}
			}
			next := h.Get("X-Next-Token")
			if next == "" {
				return
			}
			q.Set("nextToken", next)
		}
	}
}

// DeleteSnapshot deletes a snapshot by id or name: with a tag only that, without
// one all of its tags. While sandboxes that have not ended are based on it, it is
// errdefs.ErrFailedPrecondition or ErrConflict.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/snapshots/" + url.PathEscape(ref)})
}

// ForkOptions say how to fork; the zero value makes one copy that lives as long
// as the server's default.
type ForkOptions struct {
	// Count is 1 to 100.
	Count int
	// Timeout is the life of each copy, in whole seconds.
	Timeout time.Duration
	// IdempotencyKey is as in CreateOptions.
	IdempotencyKey string
}

// Forked is one copy of a fork: the sandbox, or why there is none.
type Forked struct {
	Sandbox *Sandbox   `json:"sandbox,omitempty"`
	Error   *ForkError `json:"error,omitempty"`
}

// ForkError says why a copy was not started; Code is the status that creating
// it would have had.
type ForkError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Fork starts copies of a running sandbox, which runs on. Each succeeds or fails
// by itself; an error means that there are none.
func (c *Client) Fork(ctx context.Context, id string, o ForkOptions) ([]Forked, error) {
	body := struct {
		Count          int   `json:"count,omitempty"`
		TimeoutSeconds int64 `json:"timeoutSeconds,omitempty"`
	}{o.Count, seconds(o.Timeout)}
	var made []Forked
	err := c.doTwice(ctx, request{
		method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/fork", in: body, out: &made,
		idempotencyKey: cmp.Or(o.IdempotencyKey, rand.Text()),
	})
	return made, err
}
