package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Rollback gives a sandbox the files, memory and processes of a snapshot in
// place of its own. It keeps id, tokens, environment, network and end; one that is
// paused runs afterwards. Streams break. If it fails the sandbox goes on with its
// own state.
func (c *Client) Rollback(ctx context.Context, id, snapshot string) (Sandbox, error) {
	body := struct {
		Snapshot string `json:"snapshot"`
	}{snapshot}
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/rollback", in: body, out: &sb})
	return sb, err
}

// Promote puts a copy in the place of the sandbox that it is a copy of, and
// returns that one. The copy ends. If it fails both go on as they were.
func (c *Client) Promote(ctx context.Context, id string) (Sandbox, error) {
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/promote", out: &sb})
	return sb, err
}

// maxDiff bounds the answer of Diff.
const maxDiff = 64 << 20

// Diff is what changed between two points.
type Diff struct {
	// Changes are in the order of paths. Truncated says that there are more.
	Changes   []Change `json:"changes"`
	Truncated bool     `json:"truncated"`
	// PatchesLeftOut counts changes whose patch was not sent, because all of them
	// would have been too long.
	PatchesLeftOut int `json:"patchesLeftOut"`
}

// Change is one path that differs.
type Change struct {
	// Path has no leading slash.
	Path string `json:"path"`
	// Kind is added, removed or changed.
	Kind string `json:"kind"`
	// Before and After are nil where there is nothing.
	Before *FileMeta `json:"before,omitempty"`
	After  *FileMeta `json:"after,omitempty"`
	// Content says that the content of a file differs, Binary and Large why it is
	// not in the patch.
	Content bool `json:"content"`
	Binary  bool `json:"binary"`
	Large   bool `json:"large"`
	// Insertions and Deletions count lines.
	Insertions int `json:"insertions"`
	Deletions  int `json:"deletions"`
	// Patch is as git apply and patch -p1 read it.
	Patch string `json:"patch,omitempty"`
}

// FileMeta is what is known of a file beside its content.
type FileMeta struct {
	// Type is file, directory, symlink, fifo, char or block.
	Type string `json:"type"`
	// Mode is octal.
	Mode   string `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	Target string `json:"target,omitempty"`
	Device string `json:"device,omitempty"`
}

// DiffOptions say what to compare.
type DiffOptions struct {
	// From and To are ids of sandboxes that run or are paused, or references of
	// snapshots or templates. An empty From is what To started from.
	From, To string
	// NoPatch leaves the texts out.
	NoPatch bool
}

// Diff compares the files of two points. Times of change, /tmp and other mounts
// are not compared.
func (c *Client) Diff(ctx context.Context, o DiffOptions) (Diff, error) {
	q := url.Values{"to": {o.To}}
	if o.From != "" {
		q.Set("from", o.From)
	}
	if o.NoPatch {
		q.Set("patch", strconv.FormatBool(false))
	}
	var d Diff
	err := c.do(ctx, request{method: http.MethodGet, path: "/diff", query: q, out: &d, most: maxDiff})
	return d, err
}
