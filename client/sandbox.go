package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// State is where a sandbox stands in its life.
type State string

// The states.
const (
	Pending  State = "pending"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Killing  State = "killing"
	Killed   State = "killed"
	Failed   State = "failed"
)

// Sandbox is a sandbox as the server knows it.
type Sandbox struct {
	ID           string `json:"id"`
	Name         string `json:"name,omitempty"`
	Template     string `json:"template"`
	TemplateName string `json:"templateName,omitempty"`
	BuildID      string `json:"buildID,omitempty"`
	State        State  `json:"state"`
	// Reason says why it ended: killed, timeout, oom, crashed, engine_lost,
	// exited, budget, retention, or an error text.
	Reason    string            `json:"reason,omitempty"`
	Provider  string            `json:"provider,omitempty"`
	Node      string            `json:"node,omitempty"`
	Resources Resources         `json:"resources"`
	Network   Network           `json:"network"`
	Egress    EgressPolicy      `json:"egress"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Lifecycle Lifecycle         `json:"lifecycle,omitzero"`
	CreatedAt time.Time         `json:"createdAt"`
	// StartedAt is when it was created, or resumed last.
	StartedAt time.Time `json:"startedAt,omitzero"`
	// EndsAt is zero while it is paused, PausedAt and Saved are set only then.
	EndsAt   time.Time `json:"endsAt,omitzero"`
	EndedAt  time.Time `json:"endedAt,omitzero"`
	PausedAt time.Time `json:"pausedAt,omitzero"`
	Saved    *Saved    `json:"saved,omitempty"`
	// Budget bounds what it may use over all its runs; nil when nothing does.
	Budget *Budget `json:"budget,omitempty"`
	// Origin is of what it is a copy; nil for one that started fresh.
	Origin *Origin `json:"origin,omitempty"`
	// AgentToken is set, from Create and Get and not in lists, on a sandbox
	// that can be reached: it runs, or it is paused and traffic wakes it. It
	// opens commands and files.
	AgentToken string `json:"agentToken,omitempty"`
	// TrafficToken is set where the ports need one.
	TrafficToken string `json:"trafficToken,omitempty"`
	Domain       string `json:"domain,omitempty"`
}

// Lifecycle is what a sandbox wants of pause and resume.
type Lifecycle struct {
	OnTimeout OnTimeout `json:"onTimeout,omitempty"`
	// FilesOnly makes the pause on timeout keep the files and not the memory.
	FilesOnly bool `json:"filesOnly,omitempty"`
	// AutoResume makes traffic resume the sandbox where it was paused with its
	// memory; not with FilesOnly.
	AutoResume bool `json:"autoResume,omitempty"`
}

// OnTimeout is what happens to a sandbox when its time is over; empty is
// KillOnTimeout.
type OnTimeout string

// The values of OnTimeout.
const (
	KillOnTimeout  OnTimeout = "kill"
	PauseOnTimeout OnTimeout = "pause"
)

// Saved is what a paused sandbox keeps.
type Saved struct {
	Kind SavedKind `json:"kind"`
	// SizeBytes is the length of its files; on disk they may be sparse.
	SizeBytes int64 `json:"sizeBytes"`
}

// SavedKind says what a paused sandbox keeps.
type SavedKind string

// The kinds. SavedMemory includes the files.
const (
	SavedMemory SavedKind = "memory"
	SavedFiles  SavedKind = "filesystem"
)

// Resources are limits of a sandbox; zero keeps the template's default.
type Resources struct {
	MemoryMiB int64 `json:"memoryMiB,omitempty"`
	CPUs      int   `json:"cpus,omitempty"`
	DiskMiB   int64 `json:"diskMiB,omitempty"`
	Processes int64 `json:"processes,omitempty"`
}

// Network says what a sandbox may reach and who may reach it.
type Network struct {
	// AllowInternet has an effect only when it is false: nothing but
	// AllowOut can be reached.
	AllowInternet   *bool    `json:"allowInternet,omitempty"`
	AllowOut        []string `json:"allowOut,omitempty"`
	DenyOut         []string `json:"denyOut,omitempty"`
	PrivateTraffic  bool     `json:"privateTraffic,omitempty"`
	MaskRequestHost string   `json:"maskRequestHost,omitempty"`
}

// CreateOptions say what to create; the zero value is a sandbox of template
// base that lives as long as the server's default.
type CreateOptions struct {
	Name     string
	Template string
	// Timeout is the life of the sandbox, in whole seconds.
	Timeout   time.Duration
	Env       map[string]string
	Metadata  map[string]string
	Network   Network
	Presets   []string
	Resources Resources
	Lifecycle Lifecycle
	// IdempotencyKey, 1 to 255 printable ASCII characters, makes several Creates
	// of the same one: while it runs they return it. Empty means a random one for
	// each Create, which protects its own retry only.
	IdempotencyKey string
	// Progress, when set, is told what the create is about to do, as it happens;
	// Create waits for it.
	Progress func(Stage)
}

type createBody struct {
	Name           string            `json:"name,omitempty"`
	Template       string            `json:"template,omitempty"`
	TimeoutSeconds int64             `json:"timeoutSeconds,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Network        Network           `json:"network,omitzero"`
	Egress         *egressBody       `json:"egress,omitempty"`
	Resources      Resources         `json:"resources,omitzero"`
	Lifecycle      Lifecycle         `json:"lifecycle,omitzero"`
}

type egressBody struct {
	Presets []string `json:"presets,omitempty"`
}

// Create makes a sandbox and returns when commands can be run in it. When the
// connection breaks before the answer it asks once more, with the same
// idempotency key, and gets the sandbox of the first request if there is one.
func (c *Client) Create(ctx context.Context, o CreateOptions) (Sandbox, error) {
	r := createRequest(o)
	if o.Progress != nil {
		return c.createWatched(ctx, r, o.Progress)
	}
	var sb Sandbox
	r.out = &sb
	err := c.doTwice(ctx, r)
	return sb, err
}

// doTwice is do for a request with an idempotency key: it is sent once more when
// no answer came.
func (c *Client) doTwice(ctx context.Context, r request) error {
	err := c.do(ctx, r)
	if !lost(err) || ctx.Err() != nil {
		return err
	}
	pause := time.NewTimer(retryPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return c.do(ctx, r)
	case <-ctx.Done():
		return err
	}
}

// retryPause is how long a server that breaks connections gets to come back.
const retryPause = 500 * time.Millisecond

// lost reports whether a request may have been served although no answer came:
// not when no connection was made.
func lost(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.cause == nil || (e.Status != 0 && !errors.Is(e.cause, io.ErrUnexpectedEOF)) {
		return false
	}
	dial, ok := errors.AsType[*net.OpError](e.cause)
	return !ok || dial.Op != "dial"
}

// seconds rounds up, so that a short life does not become none.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// Get returns a sandbox, also one that has ended.
func (c *Client) Get(ctx context.Context, id string) (Sandbox, error) {
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodGet, path: "/sandboxes/" + url.PathEscape(id), out: &sb})
	return sb, err
}

// ListOptions select sandboxes.
type ListOptions struct {
	// States is empty for all that have not ended.
	States []State
	// Name, when set, must match exactly.
	Name string
	// Limit is the page size, at most 100; 0 means 100.
	Limit int
}

// List yields the team's sandboxes, newest first, page by page. It ends after
// the first error.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[Sandbox, error] {
	return func(yield func(Sandbox, error) bool) {
		q := url.Values{}
		if len(o.States) > 0 {
			var states []string
			for _, s := range o.States {
				states = append(states, string(s))
			}
			q.Set("state", strings.Join(states, ","))
		}
		if o.Name != "" {
			q.Set("name", o.Name)
		}
		if o.Limit > 0 {
			q.Set("limit", strconv.Itoa(o.Limit))
		}
		for {
			var page []Sandbox
			var h http.Header
			if err := c.do(ctx, request{method: http.MethodGet, path: "/sandboxes", query: q, out: &page, header: &h}); err != nil {
				yield(Sandbox{}, err)
				return
			}
			for _, sb := range page {
				if !yield(sb, nil) {
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

var idPattern = regexp.MustCompile(`^i[a-z0-9]{20}$`)

// Find returns the sandbox with this id; else the newest running one with
// this name; else the newest that is paused or between two states; else the
// newest ended one. Unknown is errdefs.ErrNotFound.
func (c *Client) Find(ctx context.Context, ref string) (Sandbox, error) {
	if idPattern.MatchString(ref) {
		sb, err := c.Get(ctx, ref)
		if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
			return sb, err
		}
	}
	for _, states := range [][]State{{Running}, {Pending, Pausing, Paused, Resuming}, {Killing, Killed, Failed}} {
		for sb, err := range c.List(ctx, ListOptions{Name: ref, States: states, Limit: 1}) {
			if err != nil {
				return Sandbox{}, err
			}
			return c.Get(ctx, sb.ID)
		}
	}
	return Sandbox{}, &Error{Op: "find sandbox", Status: http.StatusNotFound, Message: fmt.Sprintf("no sandbox has the id or name %q", ref)}
}

// Kill ends a sandbox. One that has ended before is errdefs.ErrNotFound.
func (c *Client) Kill(ctx context.Context, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/sandboxes/" + url.PathEscape(id)})
}

// Pause saves a running sandbox and ends its box; with filesOnly its memory is
// not kept, and its processes end for good. Connections to it break. One that is
// paused already is errdefs.ErrConflict.
func (c *Client) Pause(ctx context.Context, id string, filesOnly bool) (Sandbox, error) {
	var sb Sandbox
	err := c.do(ctx, request{
		method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/pause",
		in: map[string]any{"filesOnly": filesOnly}, out: &sb,
	})
	return sb, err
}

// Resume makes a paused sandbox run for d; one that runs lives at least that
// long from now.
func (c *Client) Resume(ctx context.Context, id string, d time.Duration) (Sandbox, error) {
	var sb Sandbox
	err := c.do(ctx, request{
		method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/resume",
		in: map[string]any{"timeoutSeconds": seconds(d)}, out: &sb,
	})
	return sb, err
}

// SetTimeout moves the end of a running sandbox to now plus d; 0 is its end now:
// it is killed or paused as its Lifecycle says. A paused one is
// errdefs.ErrConflict.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) (Sandbox, error) {
	return c.setTimeout(ctx, id, map[string]any{"timeoutSeconds": seconds(d)})
}

// Extend is SetTimeout that never moves the end to an earlier time.
func (c *Client) Extend(ctx context.Context, id string, d time.Duration) (Sandbox, error) {
	return c.setTimeout(ctx, id, map[string]any{"timeoutSeconds": seconds(d), "extendOnly": true})
}

func (c *Client) setTimeout(ctx context.Context, id string, body map[string]any) (Sandbox, error) {
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodPost, path: "/sandboxes/" + url.PathEscape(id) + "/timeout", in: body, out: &sb})
	return sb, err
}

// SetNetwork replaces the egress configuration; zero values restore the
// server's default.
func (c *Client) SetNetwork(ctx context.Context, id string, n Network, presets []string) (Sandbox, error) {
	body := struct {
		Network Network     `json:"network,omitzero"`
		Egress  *egressBody `json:"egress,omitempty"`
	}{Network: n}
	if len(presets) > 0 {
		body.Egress = &egressBody{Presets: presets}
	}
	var sb Sandbox
	err := c.do(ctx, request{method: http.MethodPut, path: "/sandboxes/" + url.PathEscape(id) + "/network", in: body, out: &sb})
	return sb, err
}
