package queue

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/template"
)

const (
	// maxLine bounds one line of a log, maxLog all lines together, in bytes; what
	// matters less than a warning is left out above it, and everything above twice
	// that.
	maxLine = 16 << 10
	maxLog  = 16 << 20
	// flushEvery is how old a line may become before it can be read, flushLines
	// how many are written at once.
	flushEvery = 100 * time.Millisecond
	flushLines = 500
)

const redacted = "[redacted]"

// journal is the log of one build. Only one goroutine writes to it at a time;
// who writes faster than the database takes it waits.
type journal struct {
	store   Journal
	build   template.BuildID
	log     *slog.Logger
	entries chan template.Entry
	done    chan struct{}
	// secrets are removed from every line.
	secrets *strings.Replacer
	steps   int
	// seq is how many lines there were when the journal was opened.
	seq   int64
	bytes int
	full  bool
	// finished is set after the last step.
	finished bool
}

// newJournal goes on where the log of a build ends. close must be called. Lines
// are written when ctx has ended, too, but then no failed write is tried again.
func newJournal(ctx context.Context, s Journal, id template.BuildID, log *slog.Logger) (*journal, error) {
	last, err := s.LastBuildLog(context.WithoutCancel(ctx), id)
	if err != nil {
		return nil, err
	}
	w := &journal{
		store: s, build: id, log: log, seq: last, entries: make(chan template.Entry, flushLines), done: make(chan struct{}),
		secrets: strings.NewReplacer(),
	}
	go func() {
		defer close(w.done)
		w.flush(ctx)
	}()
	return w, nil
}

// keep removes a secret from every later line. Words of less than four
// characters would tell more by their absence than they hide.
func (w *journal) keep(secret string) {
	if len(secret) >= 4 {
		w.secrets = strings.NewReplacer(secret, redacted)
	}
}

func (w *journal) redact(s string) string { return w.secrets.Replace(s) }

// write takes a line of the Executor.
func (w *journal) write(l template.LogLine) {
	level, ok := template.ParseLevel(l.Level)
	if !ok {
		level = template.Info
	}
	e := template.Entry{At: l.At, Level: level, Step: stepName(l.Step), Text: l.Text, Done: l.Done, Cached: l.Cached, Duration: l.Duration}
	if l.Step == 0 && w.finished {
		e.Step = template.StepFinalize
	}
	if l.Done && l.Step == w.steps {
		w.finished = true
	}
	w.append(e, e.Done)
}

// line writes a line of our own, which is never left out.
func (w *journal) line(level template.Level, step, text string) {
	w.append(template.Entry{Level: level, Step: step, Text: text}, true)
}

// append adds a line; what need not be kept is left out of a log that is full.
func (w *journal) append(e template.Entry, keep bool) {
	if e.At.IsZero() {
		e.At = now()
	}
	e.Text = strings.ToValidUTF8(strings.TrimRight(w.redact(e.Text), "\r\n"), "\uFFFD")
	if len(e.Text) > maxLine {
		e.Text = strings.ToValidUTF8(e.Text[:maxLine], "") + " …"
	}
	w.bytes += len(e.Text) + 64
	if !keep && (w.bytes > 2*maxLog && e.Level < template.Error || w.bytes > maxLog && e.Level < template.Warn) {
		if w.full {
			return
		}
		w.full = true
		e = template.Entry{
			At: e.At, Level: template.Warn, Step: e.Step,
			Text: fmt.Sprintf("the log is longer than %d MiB; from here on only warnings and the ends of steps are kept", maxLog>>20),
		}
	}
	w.entries <- e
}

// close returns when every line can be read, or cannot be kept.
func (w *journal) close() {
	close(w.entries)
	<-w.done
}

// flush writes lines in batches until the journal is closed.
func (w *journal) flush(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	// Numbered here: they have no gaps whatever is lost.
	last, lost := w.seq, 0
	for first := range w.entries {
		batch := []template.Entry{first}
		timer.Reset(flushEvery)
	gather:
		for len(batch) < flushLines {
			select {
			case e, ok := <-w.entries:
				if !ok {
					break gather
				}
				batch = append(batch, e)
			case <-timer.C:
				break gather
			}
		}
		if lost > 0 {
			// What was given up may be there nevertheless.
			if n, err := w.store.LastBuildLog(context.WithoutCancel(ctx), w.build); err == nil {
				last = n
			}
			batch = append([]template.Entry{{
				At: batch[0].At, Level: template.Warn, Step: batch[0].Step,
				Text: fmt.Sprintf("%d lines are missing here: the database could not be written to", lost),
			}}, batch...)
		}
		for i := range batch {
			batch[i].Seq = last + int64(i) + 1
		}
		// Once patience was in vain, nobody waits for it again.
		keep := w.insist
		if lost > 0 {
			keep = w.try
		}
		if err := keep(ctx, batch); err != nil {
			if lost > 0 {
				batch = batch[1:] // the note itself
			}
			lost += len(batch)
			w.log.WarnContext(ctx, "lines of a build's log cannot be kept", slog.Any("error", err), slog.Int("lines", len(batch)))
			continue
		}
		last, lost = last+int64(len(batch)), 0
	}
}

// insist writes a batch, again and again for a while when that fails: who writes
// lines waits meanwhile. With the template deleted it fails at once.
func (w *journal) insist(ctx context.Context, batch []template.Entry) error {
	again := false
	return insist(ctx, func(ctx context.Context) error {
		if again {
			// What failed to answer may have been done.
			last, err := w.store.LastBuildLog(ctx, w.build)
			if err != nil || last >= batch[len(batch)-1].Seq {
				return err
			}
		}
		again = true
		return w.store.AppendBuildLog(ctx, w.build, batch)
	})
}

// try writes a batch once.
func (w *journal) try(ctx context.Context, batch []template.Entry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	return w.store.AppendBuildLog(ctx, w.build, batch)
}
