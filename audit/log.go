package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// MaxPage is the most events that one call of Log.Events returns.
const MaxPage = 1000

// Filter selects events; zero fields select all.
type Filter struct {
	Team      string
	SandboxID string
	Since     time.Time // inclusive
	// After is the Seq of the last event of the page before.
	After int64
	Limit int // 1..MaxPage; 0 means MaxPage
}

// Log reads the audit log; implemented by package store.
type Log interface {
	// Events returns one page in order of Seq.
	Events(ctx context.Context, f Filter) ([]Event, error)
}

// Export writes every event that f selects to w as JSON lines, page by page,
// so that memory stays bounded. f.Limit is ignored.
func Export(ctx context.Context, l Log, f Filter, w io.Writer) error {
	f.Limit = MaxPage
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		page, err := l.Events(ctx, f)
		if err != nil {
			return fmt.Errorf("export audit log: %w", err)
		}
		for _, ev := range page {
			if err := enc.Encode(ev); err != nil {
				return fmt.Errorf("export audit log: %w", err)
			}
		}
		if len(page) < MaxPage {
			return nil
		}
		f.After = page[len(page)-1].Seq
	}
}
