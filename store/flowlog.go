package store

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/db"
)

const (
	flowQueue      = 8192 // records waiting, all sandboxes together
	flowPerSandbox = 512  // records waiting, one sandbox
	flowDelay      = 100 * time.Millisecond
	flowRetry      = 2 * time.Second
	maxFlowText    = 512
	maxSequences   = 4096
	pruneEvery     = time.Hour
)

// FlowLog writes egress records in batches, off the gateway's path. A sandbox
// that makes flows faster than they can be written loses its own records, and
// the log says how many; it never slows the gateway nor crowds out others.
type FlowLog struct {
	store   *Store
	log     *slog.Logger
	keep    int64
	maxAge  time.Duration
	wake    chan struct{}
	flushed chan chan struct{}
	written audit.Notifier

	mu      sync.Mutex // guards what follows
	waiting map[string]*flowBacklog
	total   int

	// next holds the last Seq per sandbox; only Run's goroutine uses it.
	next map[string]int64
}

type flowBacklog struct {
	records []egress.Record
	dropped int64
}

// NewFlowLog keeps the newest perSandbox records of every sandbox, none older
// than maxAge; zero means 10,000 and 7 days. Run writes them.
func NewFlowLog(s *Store, perSandbox int, maxAge time.Duration, log *slog.Logger) *FlowLog {
	if perSandbox <= 0 {
		perSandbox = 10_000
	}
	if maxAge <= 0 {
		maxAge = 7 * 24 * time.Hour
	}
	return &FlowLog{
		store: s, log: log, keep: int64(perSandbox), maxAge: maxAge,
		wake: make(chan struct{}, 1), flushed: make(chan chan struct{}),
		waiting: map[string]*flowBacklog{}, next: map[string]int64{},
	}
}

// Add takes a record. It never blocks.
func (l *FlowLog) Add(r egress.Record) {
	l.mu.Lock()
	b := l.waiting[r.SandboxID]
	if b == nil {
		b = &flowBacklog{}
		l.waiting[r.SandboxID] = b
	}
	if len(b.records) >= flowPerSandbox || l.total >= flowQueue {
		b.dropped++
	} else {
		b.records = append(b.records, r)
		l.total++
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Flush waits until everything added before is written, for readers that want
// to see it. It needs a running Run.
func (l *FlowLog) Flush(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case l.flushed <- done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Records returns what is written of a sandbox; see [Store.Records].
func (l *FlowLog) Records(ctx context.Context, sandboxID string, after int64, limit int) ([]egress.Record, error) {
	return l.store.Records(ctx, sandboxID, after, limit)
}

// SubscribeRecords returns a channel that receives when records of a sandbox
// were written; see audit.Notifier.
func (l *FlowLog) SubscribeRecords(sandboxID string) (written <-chan struct{}, cancel func()) {
	return l.written.Subscribe(sandboxID)
}

// Run writes until ctx ends, then writes what is left.
func (l *FlowLog) Run(ctx context.Context) error {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	var delay <-chan time.Time
	for {
		select {
		case <-l.wake:
			if delay == nil {
				delay = time.After(flowDelay)
			}
		case <-delay:
			delay = nil
			if err := l.writeAll(ctx); err != nil && ctx.Err() == nil {
				l.log.WarnContext(ctx, "egress records cannot be written; will retry", slog.Any("error", err))
				delay = time.After(flowRetry)
			}
		case done := <-l.flushed:
			if err := l.writeAll(ctx); err != nil && ctx.Err() == nil {
				l.log.WarnContext(ctx, "egress records cannot be written; will retry", slog.Any("error", err))
				delay = time.After(flowRetry)
			}
			close(done)
		case now := <-prune.C:
			if err := l.store.PruneRecords(ctx, now.Add(-l.maxAge)); err != nil && ctx.Err() == nil {
				l.log.WarnContext(ctx, "old egress records cannot be deleted", slog.Any("error", err))
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return l.writeAll(last)
		}
	}
}

// writeAll writes everything that waits in one transaction; on an error it all
// waits again, as far as the limits allow.
func (l *FlowLog) writeAll(ctx context.Context) error {
	l.mu.Lock()
	batch := l.waiting
	l.waiting, l.total = map[string]*flowBacklog{}, 0
	l.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	last := map[string]int64{}
	err := l.store.write(ctx, func(q *db.Queries) error {
		clear(last)
		for id, b := range batch {
			seq, err := l.writeOne(ctx, q, id, b)
			if err != nil {
				return err
			}
			last[id] = seq
		}
		return nil
	})
	if err != nil {
		l.putBack(batch)
		return err
	}
	if len(l.next) > maxSequences {
		clear(l.next)
	}
	for id, seq := range last {
		l.next[id] = seq
		l.written.Committed(id)
	}
	return nil
}

func (l *FlowLog) putBack(batch map[string]*flowBacklog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, old := range batch {
		now := l.waiting[id]
		if now == nil {
			now = &flowBacklog{}
			l.waiting[id] = now
		}
		now.dropped += old.dropped
		room := min(flowPerSandbox-len(now.records), flowQueue-l.total, len(old.records))
		room = max(room, 0)
		now.dropped += int64(len(old.records) - room)
		now.records = append(old.records[:room:room], now.records...)
		l.total += room
	}
}

// writeOne writes one sandbox's records and returns the last Seq.
func (l *FlowLog) writeOne(ctx context.Context, q *db.Queries, id string, b *flowBacklog) (int64, error) {
	seq, ok := l.next[id]
	if !ok {
		rows, err := q.LastRecord(ctx, id)
		if err != nil {
			return 0, fmt.Errorf("read last egress record: %w", err)
		}
		if len(rows) > 0 {
			seq = rows[0]
		}
	}
	records := b.records
	if b.dropped > 0 {
		records = append(records[:len(records):len(records)], egress.Record{
			SandboxID: id, At: time.Now(), Kind: "dropped",
			Reason: fmt.Sprintf("%d records dropped: too many at once", b.dropped),
		})
	}
	for _, r := range records {
		seq++
		addr := ""
		if r.Addr.IsValid() {
			addr = r.Addr.String()
		}
		err := q.InsertRecord(ctx, db.InsertRecordParams{
			SandboxID: id, Seq: seq, At: millis(r.At), Kind: text(r.Kind, 32), Host: text(r.Host, maxFlowText),
			Addr: addr, Port: int64(r.Port), Verdict: text(string(r.Verdict), 32),
			Reason: text(r.Reason, maxFlowText), Hint: text(r.Hint, maxFlowText),
			BytesIn: r.BytesIn, BytesOut: r.BytesOut, DurationUs: r.Duration.Microseconds(),
		})
		if err != nil {
			return 0, fmt.Errorf("write egress record: %w", err)
		}
	}
	if seq > l.keep {
		if _, err := q.TrimRecords(ctx, db.TrimRecordsParams{SandboxID: id, UpTo: seq - l.keep}); err != nil {
			return 0, fmt.Errorf("trim egress records: %w", err)
		}
	}
	return seq, nil
}

// PruneRecords deletes egress records older than before.
func (s *Store) PruneRecords(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(q *db.Queries) error {
		_, err := q.DeleteRecordsBefore(ctx, millis(before))
		return err
	})
}
