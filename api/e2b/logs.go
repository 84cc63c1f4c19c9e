package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
)

// EgressLog reads the egress log; store.FlowLog implements it. The caller has
// checked that the sandbox may be seen.
type EgressLog interface {
	// Flush waits until everything that was recorded before can be read.
	Flush(ctx context.Context) error
	Records(ctx context.Context, sandboxID string, after int64, limit int) ([]egress.Record, error)
}

const (
	maxLogs      = 1000
	maxLogSearch = 256
	logWindow    = 7 * 24 * time.Hour
	logPage      = 1000
	// maxLogRows bounds what is read of each of the two logs for one answer.
	maxLogRows = 20_000
	lastMilli  = lastSecond * 1000
)

// Levels of log entries, least first.
const (
	levelDebug = "debug"
	levelInfo  = "info"
	levelWarn  = "warn"
	levelError = "error"
)

func levels() []string { return []string{levelDebug, levelInfo, levelWarn, levelError} }

// GetSandboxLogsV1 implements e2bapi.StrictServerInterface.
func (s *server) GetSandboxLogsV1(ctx context.Context, r e2bapi.GetSandboxLogsV1RequestObject) (e2bapi.GetSandboxLogsV1ResponseObject, error) {
	limit, err := logLimit(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	from, err := milli("start", r.Params.Start)
	if err != nil {
		return nil, err
	}
	all, err := s.logs(ctx, r.Id, from)
	if err != nil {
		return nil, err
	}
	out := e2bapi.GetSandboxLogsV1200JSONResponse{Logs: []e2bapi.LogLine{}, LogEntries: []e2bapi.LogEntry{}}
	for _, e := range all[:min(limit, len(all))] {
		line := map[string]string{}
		for k, v := range e.Fields {
			line[k] = v
		}
		line["level"], line["message"] = e.Level, e.Message
		b, err := json.Marshal(line)
		if err != nil {
			return nil, fmt.Errorf("encode log line: %w", err)
		}
		out.Logs = append(out.Logs, e2bapi.LogLine{Timestamp: e.Timestamp, Line: string(b)})
		out.LogEntries = append(out.LogEntries, e)
	}
	return out, nil
}

// GetSandboxLogs implements e2bapi.StrictServerInterface.
func (s *server) GetSandboxLogs(ctx context.Context, r e2bapi.GetSandboxLogsRequestObject) (e2bapi.GetSandboxLogsResponseObject, error) {
	p := r.Params
	limit, err := logLimit(p.Limit)
	if err != nil {
		return nil, err
	}
	cursor, err := milli("cursor", p.Cursor)
	if err != nil {
		return nil, err
	}
	forward := false
	if p.Direction != nil {
		if forward = *p.Direction == e2bapi.Forward; !forward && *p.Direction != e2bapi.Backward {
			return nil, apierr.Field("direction", "%q is not forward or backward", api.Clip(string(*p.Direction)))
		}
	}
	least := 0
	if p.Level != nil {
		if least = slices.Index(levels(), string(*p.Level)); least < 0 {
			return nil, apierr.Field("level", "%q is not one of %s", api.Clip(string(*p.Level)), strings.Join(levels(), ", "))
		}
	}
	search := ""
	if p.Search != nil {
		if search = strings.ToLower(*p.Search); len(*p.Search) > maxLogSearch {
			return nil, apierr.Field("search", "is longer than %d bytes", maxLogSearch)
		}
	}
	from := time.Time{}
	if forward {
		from = cursor
	}
	all, err := s.logs(ctx, r.Id, from)
	if err != nil {
		return nil, err
	}
	if !forward {
		slices.Reverse(all)
	}
	out := e2bapi.GetSandboxLogs200JSONResponse{Logs: []e2bapi.LogEntry{}}
	for _, e := range all {
		switch {
		case len(out.Logs) == limit:
			return out, nil
		case !forward && !cursor.IsZero() && e.Timestamp.After(cursor),
			slices.Index(levels(), e.Level) < least,
			!strings.Contains(strings.ToLower(e.Message), search):
		default:
			out.Logs = append(out.Logs, e)
		}
	}
	return out, nil
}

func logLimit(n *int32) (int, error) {
	if n == nil {
		return maxLogs, nil
	}
	if *n < 0 || *n > maxLogs {
		return 0, apierr.Field("limit", "must be 0 to %d, is %d", maxLogs, *n)
	}
	return int(*n), nil
}

// milli reads Unix milliseconds; the zero time when there are none.
func milli(field string, ms *int64) (time.Time, error) {
	if ms == nil {
		return time.Time{}, nil
	}
	if *ms < 0 || *ms > lastMilli {
		return time.Time{}, apierr.Field(field, "must be Unix milliseconds, is %d", *ms)
	}
	return time.UnixMilli(*ms).UTC(), nil
}

// logs returns what is known of a sandbox since a time, oldest first: its audit
// events, and the connections that it was denied.
func (s *server) logs(ctx context.Context, param string, since time.Time) ([]e2bapi.LogEntry, error) {
	id, err := idOf(param)
	if err != nil {
		return nil, err
	}
	box, err := s.Sandboxes.Get(ctx, api.Caller(ctx), id)
	if err != nil {
		return nil, about(id, err)
	}
	if kept := time.Now().Add(-logWindow); since.Before(kept) {
		since = kept
	}
	f := audit.Filter{Team: string(box.Team), SandboxID: string(id), Since: since, Limit: logPage}
	var out []e2bapi.LogEntry
	for range maxLogRows / logPage {
		events, err := s.Audit.Events(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, ev := range events {
			out = append(out, eventEntry(ev))
			f.After = ev.Seq
		}
		if len(events) < logPage {
			break
		}
	}
	if err := s.EgressLog.Flush(ctx); err != nil {
		return nil, err
	}
	after := int64(0)
	for range maxLogRows / logPage {
		records, err := s.EgressLog.Records(ctx, string(id), after, logPage)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			after = r.Seq
			if r.Verdict == egress.Deny && !r.At.Before(since) {
				out = append(out, deniedEntry(r))
			}
		}
		if len(records) < logPage {
			break
		}
	}
	slices.SortStableFunc(out, func(a, b e2bapi.LogEntry) int { return a.Timestamp.Compare(b.Timestamp) })
	return out, nil
}

// eventEntry is an audit event as a log entry. What the agent reported comes
// from the guest and is marked so.
func eventEntry(ev audit.Event) e2bapi.LogEntry {
	e := e2bapi.LogEntry{Timestamp: ev.At.UTC(), Level: eventLevel(ev), Fields: map[string]string{}}
	for k, v := range ev.Fields {
		e.Fields[k] = v
	}
	e.Fields["logger"], e.Fields["event"] = "sandbox", ev.Type
	if ev.Reason != "" {
		e.Fields["reason"] = ev.Reason
	}
	if ev.Actor == "agent" {
		e.Fields["source"] = "guest"
	}
	e.Message = strings.NewReplacer(".", " ", "_", " ").Replace(ev.Type)
	if ev.Reason != "" {
		e.Message += ": " + ev.Reason
	}
	return e
}

func eventLevel(ev audit.Event) string {
	switch ev.Type {
	case "sandbox.failed":
		return levelError
	case "sandbox.killed":
		switch ev.Reason {
		case provider.ReasonOOM, provider.ReasonCrashed, provider.ReasonEngineLost:
			return levelError
		}
	case "sandbox.limit_hit", "sandbox.pause_failed", "sandbox.resume_failed", "sandbox.budget_near", "sandbox.budget_spent":
		return levelWarn
	}
	return levelInfo
}

// deniedEntry is a connection or name that a sandbox was denied. Host is the
// guest's own text, bounded by the gateway.
func deniedEntry(r egress.Record) e2bapi.LogEntry {
	where := r.Host
	if where == "" && r.Addr.IsValid() {
		where = r.Addr.String()
	}
	e := e2bapi.LogEntry{Timestamp: r.At.UTC(), Level: levelWarn, Fields: map[string]string{
		"logger": "egress", "kind": r.Kind, "verdict": string(r.Verdict), "host": where,
	}}
	if r.Port != 0 {
		e.Fields["port"] = strconv.Itoa(int(r.Port))
		where += ":" + strconv.Itoa(int(r.Port))
	}
	if r.Hint != "" {
		e.Fields["hint"] = r.Hint
	}
	e.Message = "denied " + r.Kind + " to " + where
	if r.Reason != "" {
		e.Message += ": " + r.Reason
	}
	return e
}
