package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/google/go-cmp/cmp"
)

// memory is a Log of n events.
type memory int

func (m memory) Events(_ context.Context, f audit.Filter) (page []audit.Event, err error) {
	for seq := f.After + 1; seq <= int64(m) && len(page) < f.Limit; seq++ {
		page = append(page, event(seq))
	}
	return page, nil
}

func event(seq int64) audit.Event {
	return audit.Event{Seq: seq, Type: "t", At: time.UnixMilli(seq).UTC(), Fields: map[string]string{"html": "<&>"}}
}

func TestExport(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, audit.MaxPage, 2*audit.MaxPage + 1} {
		var out bytes.Buffer
		if err := audit.Export(t.Context(), memory(n), audit.Filter{Limit: 3}, &out); err != nil {
			t.Errorf("Export(%d events) = %v", n, err)
		}
		if n > 0 && !bytes.Contains(out.Bytes(), []byte("<&>")) {
			t.Error("text was escaped")
		}
		lines := bufio.NewScanner(&out)
		var seq int64
		for lines.Scan() {
			seq++
			var got audit.Event
			err := json.Unmarshal(lines.Bytes(), &got)
			if diff := cmp.Diff(event(seq), got); diff != "" || err != nil {
				t.Fatalf("line %d = %v (-want +got):\n%s", seq, err, diff)
			}
		}
		if seq != int64(n) {
			t.Errorf("%d lines, want %d", seq, n)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

func TestExportFails(t *testing.T) {
	t.Parallel()
	if err := audit.Export(t.Context(), memory(1), audit.Filter{}, full{}); err == nil {
		t.Error("Export() to a full disk = nil")
	}
}
