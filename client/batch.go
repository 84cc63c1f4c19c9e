package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"time"
)

// BatchOptions ask for a batch: many commands, each in a fresh sandbox that is
// destroyed after, or all in one that exists.
type BatchOptions struct {
	// Sandbox, when set, is the id of the running sandbox that all items run in;
	// the members down to Metadata must be zero then.
	Sandbox   string
	Template  string
	Resources Resources
	Network   Network
	Presets   []string
	Metadata  map[string]string
	// Env, Dir and User are for every item.
	Env       map[string]string
	Dir, User string
	// Concurrency is how many items run at a time; 0 leaves it to the server.
	Concurrency int
	// Timeout bounds each item's wait for its sandbox and, again, its command,
	// in whole seconds; 0 is the server's default.
	Timeout time.Duration
	// StopOnError starts no more items once one has failed.
	StopOnError bool
	// Items are at most 1000.
	Items []BatchItem
}

// BatchItem is one command: Cmd, or Code in Language.
type BatchItem struct {
	// ID names it in events; its index when empty.
	ID   string            `json:"id,omitempty"`
	Cmd  string            `json:"cmd,omitempty"`
	Code string            `json:"code,omitempty"`
	Args []string          `json:"args,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	Dir  string            `json:"cwd,omitempty"`
	// Language is python (also when empty), javascript or bash.
	Language string `json:"language,omitempty"`
	// Stdin is the whole input; nil for none.
	Stdin *string `json:"stdin,omitempty"`
	// Files are written before it runs.
	Files []BatchFile `json:"files,omitempty"`
	// Collect are paths of files to return; relative ones begin at the user's
	// home.
	Collect []string `json:"collect,omitempty"`
}

// BatchFile is a file of an item, on its way in or out.
type BatchFile struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// BatchEvent is one thing that happened; exactly one member is set. The last is
// the Summary.
type BatchEvent struct {
	Started *BatchStarted
	Result  *BatchResult
	Summary *BatchSummary
}

// BatchStarted says that the command of an item is about to run.
type BatchStarted struct {
	ID      string `json:"id"`
	Index   int    `json:"index"`
	Sandbox string `json:"sandbox"`
	WaitMS  int64  `json:"waitMs"`
}

// BatchResult is how an item ended. Its sandbox, if it had one of its own, is
// gone.
type BatchResult struct {
	ID      string
	Index   int
	Sandbox string
	// Exit is how the command ended, when Err is nil.
	Exit Exit
	// Stdout and Stderr are at most the first and the last 256 KiB, with a line
	// between; StdoutBytes and StderrBytes are how many there were.
	Stdout, Stderr           string
	StdoutBytes, StderrBytes int64
	Truncated                bool
	Files                    []CollectedFile
	// Waited is the time until its sandbox was there, Took that of the command.
	Waited, Took time.Duration
	// Err is an *Error that says why the command was not run to its end; its
	// Code may be timeout, sandbox_ended or cancelled.
	Err error
}

// CollectedFile is a file that an item was asked for, or why it is not there.
type CollectedFile struct {
	BatchFile
	Err error
}

// OK reports whether the command succeeded.
func (r BatchResult) OK() bool { return r.Err == nil && r.Exit.Code == 0 }

// UnmarshalJSON implements json.Unmarshaler.
func (r *BatchResult) UnmarshalJSON(data []byte) error {
	var w struct {
		ID, Sandbox              string
		Index, ExitCode          int
		Status                   string
		Stdout, Stderr           string
		StdoutBytes, StderrBytes int64
		Truncated                bool
		Files                    []struct {
			BatchFile
			Error *problem
		}
		WaitMS     int64 `json:"waitMs"`
		DurationMS int64 `json:"durationMs"`
		Error      *problem
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	*r = BatchResult{
		ID: w.ID, Index: w.Index, Sandbox: w.Sandbox, Exit: exitFrom(w.ExitCode, w.ExitCode >= 0, w.Status),
		Stdout: w.Stdout, Stderr: w.Stderr, StdoutBytes: w.StdoutBytes, StderrBytes: w.StderrBytes, Truncated: w.Truncated,
		Waited: time.Duration(w.WaitMS) * time.Millisecond, Took: time.Duration(w.DurationMS) * time.Millisecond,
	}
	if w.Error != nil {
		r.Err = w.Error.of("run item " + w.ID)
	}
	for _, f := range w.Files {
		c := CollectedFile{BatchFile: f.BatchFile}
		if f.Error != nil {
			c.Err = f.Error.of("collect " + f.Path)
		}
		r.Files = append(r.Files, c)
	}
	return nil
}

// BatchSummary ends a batch.
type BatchSummary struct {
	Items     int `json:"items"`
	Succeeded int `json:"succeeded"`
	Failed    int `json:"failed"`
	// Skipped were not started.
	Skipped    int   `json:"skipped"`
	DurationMS int64 `json:"durationMs"`
}

type batchBody struct {
	Isolation      string            `json:"isolation,omitempty"`
	Sandbox        string            `json:"sandbox,omitempty"`
	Template       string            `json:"template,omitempty"`
	Resources      *Resources        `json:"resources,omitempty"`
	Network        *Network          `json:"network,omitempty"`
	Egress         *egressBody       `json:"egress,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	Dir            string            `json:"cwd,omitempty"`
	User           string            `json:"user,omitempty"`
	Concurrency    int               `json:"concurrency,omitempty"`
	TimeoutSeconds int64             `json:"timeoutSeconds,omitempty"`
	StopOnError    bool              `json:"stopOnError,omitempty"`
	Items          []BatchItem       `json:"items"`
}

func (o BatchOptions) body() batchBody {
	b := batchBody{
		Sandbox: o.Sandbox, Template: o.Template, Metadata: o.Metadata, Env: o.Env, Dir: o.Dir, User: o.User,
		Concurrency: o.Concurrency, TimeoutSeconds: seconds(o.Timeout), StopOnError: o.StopOnError, Items: o.Items,
	}
	if o.Sandbox != "" {
		b.Isolation = "shared"
	}
	if o.Resources != (Resources{}) {
		b.Resources = &o.Resources
	}
	if n := o.Network; n.AllowInternet != nil || n.PrivateTraffic || n.MaskRequestHost != "" || len(n.AllowOut)+len(n.DenyOut) > 0 {
		b.Network = &n
	}
	if len(o.Presets) > 0 {
		b.Egress = &egressBody{Presets: o.Presets}
	}
	return b
}

// Batch runs a batch and yields what happens as it does. That an item fails is
// no error. It ends after the first error; when ctx ends, or the loop is left
// early, no more items are started, those that run are killed and their
// sandboxes destroyed.
func (c *Client) Batch(ctx context.Context, o BatchOptions) iter.Seq2[BatchEvent, error] {
	return func(yield func(BatchEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := c.send(ctx, request{method: http.MethodPost, path: "/batch", in: o.body()}, eventStream)
		if err != nil {
			yield(BatchEvent{}, err)
			return
		}
		defer resp.Body.Close()
		const op = "POST /native/v1/batch"
		done, err := readEvents(ctx, resp.Body, op, maxEvent, func(event string, data []byte) (bool, error) {
			var ev BatchEvent
			var into any
			switch event {
			case "started":
				ev.Started = &BatchStarted{}
				into = ev.Started
			case "result":
				ev.Result = &BatchResult{}
				into = ev.Result
			case "summary":
				ev.Summary = &BatchSummary{}
				into = ev.Summary
			default:
				return true, nil
			}
			if err := unmarshal(op, data, into); err != nil {
				return false, err
			}
			return yield(ev, nil) && ev.Summary == nil, nil
		})
		if err == nil && !done {
			err = cut(op)
		}
		if err != nil {
			yield(BatchEvent{}, err)
		}
	}
}
