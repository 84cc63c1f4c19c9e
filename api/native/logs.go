package native

import (
	"context"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
)

const (
	defaultRows = 100
	maxRows     = 1000
)

// ListFlows implements nativeapi.StrictServerInterface.
func (s *server) ListFlows(ctx context.Context, r nativeapi.ListFlowsRequestObject) (nativeapi.ListFlowsResponseObject, error) {
	box, err := s.get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	read := func(ctx context.Context, after int64, limit int) ([]nativeapi.Flow, error) {
		records, err := s.EgressLog.Records(ctx, string(box.ID), after, limit)
		return convert(records, flow), err
	}
	seq := func(f nativeapi.Flow) int64 { return f.Seq }
	if r.Params.Follow != nil && *r.Params.Follow {
		return &follow[nativeapi.Flow]{
			server: s, ctx: ctx, id: box.ID, event: "flow", read: read, seq: seq, after: value(r.Params.After),
			subscribe: s.EgressLog.SubscribeRecords, flush: s.EgressLog.Flush,
		}, nil
	}
	// A caller who has just been refused finds the line.
	if err := s.EgressLog.Flush(ctx); err != nil {
		return nil, err
	}
	rows, err := page(ctx, read, seq, r.Params.After, r.Params.Limit)
	return nativeapi.ListFlows200JSONResponse(rows), err
}

// ListEvents implements nativeapi.StrictServerInterface.
func (s *server) ListEvents(ctx context.Context, r nativeapi.ListEventsRequestObject) (nativeapi.ListEventsResponseObject, error) {
	box, err := s.get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	read := s.events(audit.Filter{Team: string(box.Team), SandboxID: string(box.ID)})
	if r.Params.Follow != nil && *r.Params.Follow {
		return &follow[nativeapi.Event]{
			server: s, ctx: ctx, id: box.ID, event: "audit", read: read, seq: eventSeq, after: value(r.Params.After),
			flush: func(context.Context) error { return nil }, // events are written as they happen
		}, nil
	}
	rows, err := page(ctx, read, eventSeq, r.Params.After, r.Params.Limit)
	return nativeapi.ListEvents200JSONResponse(rows), err
}

// ListAudit implements nativeapi.StrictServerInterface.
func (s *server) ListAudit(ctx context.Context, r nativeapi.ListAuditRequestObject) (nativeapi.ListAuditResponseObject, error) {
	read := s.events(audit.Filter{Team: string(api.Caller(ctx).Team)})
	rows, err := page(ctx, read, eventSeq, r.Params.After, r.Params.Limit)
	return nativeapi.ListAudit200JSONResponse(rows), err
}

func (s *server) events(f audit.Filter) reader[nativeapi.Event] {
	return func(ctx context.Context, after int64, limit int) ([]nativeapi.Event, error) {
		f.After, f.Limit = after, limit
		events, err := s.Audit.Events(ctx, f)
		return convert(events, event), err
	}
}

func eventSeq(e nativeapi.Event) int64 { return e.Seq }

// reader returns rows after a sequence number, oldest first.
type reader[T any] func(ctx context.Context, after int64, limit int) ([]T, error)

// page returns the rows after a number, or the latest ones when none is given.
func page[T any](ctx context.Context, read reader[T], seq func(T) int64, after *int64, limit *int) ([]T, error) {
	n := defaultRows
	if limit != nil {
		if n = *limit; n < 1 || n > maxRows {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxRows, n)
		}
	}
	if after != nil {
		if *after < 0 {
			return nil, apierr.Field("after", "must not be negative")
		}
		return read(ctx, *after, n)
	}
	return latest(ctx, read, seq, n)
}

// latest finds the last n rows of a log that can only be read forwards, in a
// logarithmic number of reads: it searches the greatest number that n rows
// still follow.
func latest[T any](ctx context.Context, read reader[T], seq func(T) int64, n int) ([]T, error) {
	best, err := read(ctx, 0, n)
	if err != nil || len(best) < n {
		return best, err
	}
	low, step := seq(best[n-1])-int64(n), int64(n)
	low = max(low, 0)
	// Widen until fewer than n rows follow.
	high := low + step
	for {
		rows, err := read(ctx, high, n)
		if err != nil {
			return nil, err
		}
		if len(rows) < n {
			break
		}
		best, low = rows, high
		step *= 2
		high += step
	}
	for high-low > 1 {
		middle := low + (high-low)/2
		rows, err := read(ctx, middle, n)
		if err != nil {
			return nil, err
		}
		if len(rows) < n {
			high = middle
			continue
		}
		best, low = rows, middle
	}
	return best, nil
}

func flow(r egress.Record) nativeapi.Flow {
	out := nativeapi.Flow{
		Seq: r.Seq, At: r.At.UTC(), Kind: nativeapi.FlowKind(r.Kind), Host: r.Host, Port: int(r.Port),
		Verdict: nativeapi.FlowVerdict(r.Verdict), Reason: r.Reason, Hint: r.Hint,
		BytesIn: r.BytesIn, BytesOut: r.BytesOut, DurationMs: r.Duration.Milliseconds(),
	}
	if r.Addr.IsValid() {
		out.Address = r.Addr.String()
	}
	return out
}

func event(e audit.Event) nativeapi.Event {
	return nativeapi.Event{
		Seq: e.Seq, At: e.At.UTC(), Type: e.Type, Actor: e.Actor,
		SandboxID: e.SandboxID, Reason: e.Reason, Fields: e.Fields,
	}
}

func convert[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
