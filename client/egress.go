package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// EgressPolicy is an effective policy: the first rule that matches decides.
type EgressPolicy struct {
	Version int          `json:"version"`
	Default string       `json:"default"`
	Rules   []EgressRule `json:"rules,omitempty"`
}

// EgressRule matches by destination; empty lists match anything.
type EgressRule struct {
	Hosts   []string `json:"hosts,omitempty"`
	Ports   []int    `json:"ports,omitempty"`
	Verdict string   `json:"verdict"`
	Note    string   `json:"note,omitempty"`
}

// Flow is one line of the egress log.
type Flow struct {
	Seq  int64     `json:"seq"`
	At   time.Time `json:"at"`
	Kind string    `json:"kind"` // tcp, dns or udp
	// Host is the name as the guest gave it: untrusted text.
	Host    string `json:"host,omitempty"`
	Address string `json:"address,omitempty"`
	Port    int    `json:"port,omitempty"`
	Verdict string `json:"verdict"` // allow or deny
	// Hint is a rule that would have let a denied flow out; empty where no
	// request can open it.
	Hint       string `json:"hint,omitempty"`
	Reason     string `json:"reason,omitempty"`
	BytesOut   int64  `json:"bytesOut,omitempty"`
	BytesIn    int64  `json:"bytesIn,omitempty"`
	DurationMS int64  `json:"durationMs,omitempty"`
}

// Event is one audit event.
type Event struct {
	Seq       int64             `json:"seq"`
	At        time.Time         `json:"at"`
	Type      string            `json:"type"`
	Actor     string            `json:"actor,omitempty"`
	SandboxID string            `json:"sandboxID,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Fields    map[string]string `json:"fields,omitempty"`
}

// RowOptions select rows of a log.
type RowOptions struct {
	// Limit is at most 1000; 0 means the server's default of 100.
	Limit int
	// After asks for rows with a greater Seq; 0 for the latest rows.
	After int64
	// Follow goes on with new rows until the sandbox ends.
	Follow bool
}

func (o RowOptions) query() url.Values {
	q := url.Values{}
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.After > 0 {
		q.Set("after", strconv.FormatInt(o.After, 10))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	return q
}

// Flows yields the egress log of a sandbox, oldest first.
func (c *Client) Flows(ctx context.Context, id string, o RowOptions) iter.Seq2[Flow, error] {
	return rows[Flow](ctx, c, "/sandboxes/"+url.PathEscape(id)+"/egress", o)
}

// Events yields the audit events of a sandbox, oldest first.
func (c *Client) Events(ctx context.Context, id string, o RowOptions) iter.Seq2[Event, error] {
	return rows[Event](ctx, c, "/sandboxes/"+url.PathEscape(id)+"/events", o)
}

func rows[T any](ctx context.Context, c *Client, path string, o RowOptions) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		r := request{method: http.MethodGet, path: path, query: o.query()}
		var zero T
		if o.Follow {
			if err := stream(ctx, c, r, func(v T) bool { return yield(v, nil) }); err != nil {
				yield(zero, err)
			}
			return
		}
		var page []T
		r.out = &page
		if err := c.do(ctx, r); err != nil {
			yield(zero, err)
			return
		}
		for _, v := range page {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// stream reads the rows of a log that is followed, until the end event, the end
// of the connection or false from each.
func stream[T any](ctx context.Context, c *Client, r request, each func(T) bool) error {
	resp, err := c.send(ctx, r, eventStream)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = readEvents(ctx, resp.Body, "follow "+r.path, maxRow, func(event string, data []byte) (bool, error) {
		if event == "end" {
			return false, nil
		}
		var v T
		if err := json.Unmarshal(data, &v); err != nil {
			return false, &Error{Op: "follow " + r.path, Message: "unreadable row in the stream", cause: err}
		}
		return each(v), nil
	})
	return err
}

// EgressDecision is the answer to a check.
type EgressDecision struct {
	Verdict    string      `json:"verdict"`
	Reason     string      `json:"reason"`
	Rule       *EgressRule `json:"rule,omitempty"`
	RuleIndex  *int        `json:"ruleIndex,omitempty"`
	Suggestion string      `json:"suggestion,omitempty"`
}

// CheckEgress asks what would happen to a connection. With an empty sandboxID
// the server's default policy is judged.
func (c *Client) CheckEgress(ctx context.Context, host string, port int, sandboxID string) (EgressDecision, error) {
	body := map[string]any{"host": host, "port": port}
	if sandboxID != "" {
		body["sandboxID"] = sandboxID
	}
	var d EgressDecision
	err := c.do(ctx, request{method: http.MethodPost, path: "/egress/check", in: body, out: &d})
	return d, err
}
