package filesystem

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// What happened before a watch failed is told before the failure, however slow
// the client is.
func TestForwardSendsEventsBeforeTheError(t *testing.T) {
	t.Parallel()
	failed := errors.New("the watch failed")
	for _, test := range []struct {
		name         string
		emits, wants int
		err          error
	}{
		{"nothing queued", 0, 0, failed},
		{"a few", 3, 3, failed},
		{"as many as fit", streamBacklog, streamBacklog, failed},
		{"more than fit", 2 * streamBacklog, streamBacklog, errBacklog},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{})
			run := func(_ context.Context, emit func(*pb.FilesystemEvent) error) error {
				defer close(ended)
				for i := range test.emits {
					if err := emit(&pb.FilesystemEvent{Name: fmt.Sprint(i)}); err != nil {
						return err
					}
				}
				return failed
			}
			var got []string
			send := func(r *pb.WatchDirResponse) error {
				<-ended // from here on everything is queued and the error is there
				got = append(got, r.GetFilesystem().GetName())
				return nil
			}
			err := forward(t.Context(), time.Hour, run, send)
			if !errors.Is(err, test.err) {
				t.Errorf("forward() = %v, want %v", err, test.err)
			}
			// The first event may have left the queue before it was full.
			if len(got) < test.wants || len(got) > test.wants+1 {
				t.Fatalf("%d events were sent, want %d", len(got), test.wants)
			}
			for i, name := range got {
				if name != fmt.Sprint(i) {
					t.Fatalf("event %d is %s", i, name)
				}
			}
		})
	}
}

// A client that has left waits for nothing.
func TestForwardEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	run := func(ctx context.Context, emit func(*pb.FilesystemEvent) error) error {
		if err := emit(&pb.FilesystemEvent{}); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	err := forward(ctx, time.Hour, run, func(*pb.WatchDirResponse) error { cancel(); return nil })
	if connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("forward() = %v, want code canceled", err)
	}
}

func TestPollerDeliversBeforeItsError(t *testing.T) {
	t.Parallel()
	p := &poller{watch: &watch{root: "/d"}, events: []*pb.FilesystemEvent{{Name: "a"}, {Name: "b"}}, err: errBacklog}
	s := &Service{watchers: map[string]*poller{"w": p}}
	ask := connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: "w"})
	got, err := s.GetWatcherEvents(t.Context(), ask)
	if err != nil || len(got.Msg.GetEvents()) != 2 {
		t.Fatalf("GetWatcherEvents() = %v, %v, want what was queued", got, err)
	}
	if _, err := s.GetWatcherEvents(t.Context(), ask); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("GetWatcherEvents() after that = %v, want why the watch failed", err)
	}
}
