package gateway

import (
	"context"
	"sync/atomic"

	"github.com/caisson-dev/caisson/egress"
)

// Queue is a [Recorder] with a bounded buffer between the connections and
// whatever keeps the records. When the buffer is full, records are dropped and
// counted: the network never waits for the disk.
type Queue struct {
	records chan egress.Record
	dropped atomic.Int64
}

const maxBatch = 256

// NewQueue returns a queue for size records.
func NewQueue(size int) *Queue {
	return &Queue{records: make(chan egress.Record, max(size, 1))}
}

// Record implements [Recorder].
func (q *Queue) Record(r egress.Record) {
	select {
	case q.records <- r:
	default:
		q.dropped.Add(1)
	}
}

// Dropped returns how many records did not fit since the start.
func (q *Queue) Dropped() int64 { return q.dropped.Load() }

// Run hands records to keep in batches until ctx ends, then once more what is
// still queued. keep reports its own errors; a batch is not offered again.
func (q *Queue) Run(ctx context.Context, keep func(context.Context, []egress.Record)) {
	for {
		select {
		case r := <-q.records:
			keep(ctx, q.fill(r))
		case <-ctx.Done():
			for {
				select {
				case r := <-q.records:
					keep(context.WithoutCancel(ctx), q.fill(r))
				default:
					return
				}
			}
		}
	}
}

// fill returns first and what else is queued already.
func (q *Queue) fill(first egress.Record) []egress.Record {
	batch := []egress.Record{first}
	for len(batch) < maxBatch {
		select {
		case r := <-q.records:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}
