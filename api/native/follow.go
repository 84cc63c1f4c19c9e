package native

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/sandbox"
)

// keepaliveEvery keeps proxies from closing a quiet stream. The log is read as
// often too, for rows that another process has written.
const keepaliveEvery = 15 * time.Second

// follow streams a log as server-sent events until the sandbox has ended or is
// paused and all was sent, the client leaves or the server stops. It reads when it is told
// of new rows.
type follow[T any] struct {
	server *server
	ctx    context.Context //nolint:containedctx // of the request that this answers
	id     sandbox.ID
	event  string
	read   reader[T]
	seq    func(T) int64
	after  int64
	// subscribe tells of rows that were committed; nil for the audit log.
	subscribe func(sandboxID string) (<-chan struct{}, func())
	// flush commits the rows that wait.
	flush func(context.Context) error
}

// VisitListFlowsResponse implements nativeapi.ListFlowsResponseObject.
func (f *follow[T]) VisitListFlowsResponse(w http.ResponseWriter) error { return f.stream(w) }

// VisitListEventsResponse implements nativeapi.ListEventsResponseObject.
func (f *follow[T]) VisitListEventsResponse(w http.ResponseWriter) error { return f.stream(w) }

func (f *follow[T]) stream(w http.ResponseWriter) error {
	// Before the first read, so that no row falls between. Every log listens to
	// the events, because the last one comes with the end of the record.
	events, cancel := f.server.Audit.SubscribeEvents(string(f.id))
	defer cancel()
	var rows <-chan struct{}
	if f.subscribe != nil {
		rows, cancel = f.subscribe(string(f.id))
		defer cancel()
	}
	keepalive := time.NewTicker(keepaliveEvery)
	defer keepalive.Stop()
	if err := f.flush(f.ctx); err != nil {
		return err
	}
	eventHeader(w)
	out := sender{w, http.NewResponseController(w)}
	for {
		ended, err := f.sendNew(out)
		if err == nil && ended {
			err = out.write("event: end\ndata: {}\n\n")
		}
		if err == nil {
			err = out.Flush()
		}
		if err == nil && ended {
			_ = out.SetWriteDeadline(time.Time{}) // the connection is as it was
		}
		if err != nil || ended {
			return nil //nolint:nilerr // the stream has begun: to end it is all that is left
		}
		select {
		case <-rows:
		case <-events:
		case <-keepalive.C:
			if err := out.write(": keepalive\n\n"); err != nil {
				return nil //nolint:nilerr // the client left
			}
		case <-f.ctx.Done():
			return nil
		case <-f.server.Stop:
			return nil
		}
	}
}

// sender writes to a client, which has writeLimit to read each piece: one that
// reads no more must not be held for ever.
type sender struct {
	io.Writer
	*http.ResponseController
}

func (s sender) write(text string) error {
	_ = s.SetWriteDeadline(time.Now().Add(writeLimit)) // a writer without is one of a test
	_, err := io.WriteString(s.Writer, text)
	return err
}

// sendNew writes the rows that came since the last call, and reports whether
// they were the last.
func (f *follow[T]) sendNew(out sender) (ended bool, err error) {
	// Asked before reading, so that the last rows are not missed.
	if ended, err = f.ended(); err != nil {
		return false, err
	}
	for {
		n, err := f.sendPage(out)
		if err != nil || n < maxRows {
			return ended, err
		}
	}
}

// ended reports whether the sandbox's record has ended or is paused, which it is
// after everything else of it; all rows are committed then. A sandbox on its way
// into another state has rows to come.
func (f *follow[T]) ended() (bool, error) {
	if _, running := f.server.Sandboxes.Live(f.id); running {
		return false, nil
	}
	box, err := f.server.Sandboxes.Get(f.ctx, api.Caller(f.ctx), f.id)
	if err != nil && !errdefs.IsNotFound(err) { // pruned meanwhile
		return false, err
	}
	if err == nil && !box.State.Ended() && box.State != sandbox.Paused {
		return false, nil
	}
	return true, f.flush(f.ctx)
}

func (f *follow[T]) sendPage(out sender) (int, error) {
	rows, err := f.read(f.ctx, f.after, maxRows)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		b, err := json.Marshal(row)
		if err != nil {
			return 0, err
		}
		if err := out.write(fmt.Sprintf("event: %s\nid: %d\ndata: %s\n\n", f.event, f.seq(row), b)); err != nil {
			return 0, err
		}
		f.after = f.seq(row)
	}
	return len(rows), nil
}
