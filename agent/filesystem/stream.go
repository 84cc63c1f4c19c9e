package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

const (
	keepaliveHeader  = "Keepalive-Ping-Interval"
	defaultKeepalive = 90 * time.Second
	// streamBacklog and pollBacklog bound events that a client has not taken.
	streamBacklog = 4096
	pollBacklog   = 16384
	// maxPollers bounds watchers that were created and not removed.
	maxPollers = 256
)

var errBacklog = connect.NewError(connect.CodeResourceExhausted, errors.New("too many events were not fetched, some were lost"))

// WatchDir implements the RPC.
func (s *Service) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], stream *connect.ServerStream[pb.WatchDirResponse]) error {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return err
	}
	w, err := s.newWatch(path, watchOptions{req.Msg.GetRecursive(), req.Msg.GetIncludeEntry(), req.Msg.GetAllowNetworkMounts()})
	if err != nil {
		return err
	}
	defer w.close()
	if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}

	return forward(ctx, keepaliveOf(req.Header()), w.run, stream.Send)
}

// keepaliveOf is how often a client wants to hear of a quiet watch.
func keepaliveOf(h http.Header) time.Duration {
	if n, err := strconv.Atoi(h.Get(keepaliveHeader)); err == nil && n > 0 && n <= 24*3600 {
		return time.Duration(n) * time.Second
	}
	return defaultKeepalive
}

// forward sends what run emits until ctx ends or run or send fails. What was
// emitted before run failed is sent before its error is returned.
func forward(ctx context.Context, every time.Duration, run func(context.Context, func(*pb.FilesystemEvent) error) error, send func(*pb.WatchDirResponse) error) error {
	// A buffer between watch and stream: the kernel's own queue is not long.
	events := make(chan *pb.FilesystemEvent, streamBacklog)
	var failure error // run's, from when events is closed
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(events)
		failure = run(ctx, func(ev *pb.FilesystemEvent) error {
			select {
			case events <- ev:
				return nil
			default:
				return errBacklog
			}
		})
	})
	keepalive := time.NewTicker(every)
	defer keepalive.Stop()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				if ctx.Err() != nil {
					return contextError(ctx)
				}
				return failure
			}
			if err := send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: ev}}); err != nil {
				return err
			}
			keepalive.Reset(every)
		case <-keepalive.C:
			if err := send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}}); err != nil {
				return err
			}
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the watch's deadline has passed"))
	}
	return connect.NewError(connect.CodeCanceled, ctx.Err())
}

// poller is a watch whose events wait to be fetched.
type poller struct {
	watch  *watch
	cancel context.CancelFunc

	mu     sync.Mutex // guards events and err
	events []*pb.FilesystemEvent
	err    error
}

// CreateWatcher implements the RPC.
func (s *Service) CreateWatcher(_ context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	w, err := s.newWatch(path, watchOptions{req.Msg.GetRecursive(), req.Msg.GetIncludeEntry(), req.Msg.GetAllowNetworkMounts()})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background()) // ends by RemoveWatcher or Close
	p := &poller{watch: w, cancel: cancel}
	id := "w" + strings.ToLower(rand.Text())[:20]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers == nil || len(s.watchers) >= maxPollers {
		cancel()
		w.close()
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d watchers", maxPollers))
	}
	s.watchers[id] = p
	s.wg.Go(func() { p.run(ctx) })
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: id}), nil
}

// run collects events until ctx ends.
func (p *poller) run(ctx context.Context) {
	defer p.watch.close()
	err := p.watch.run(ctx, func(ev *pb.FilesystemEvent) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.events) >= pollBacklog {
			return errBacklog
		}
		p.events = append(p.events, ev)
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// GetWatcherEvents implements the RPC. A watch that has failed delivers the
// events before its error.
func (s *Service) GetWatcherEvents(_ context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	s.mu.Lock()
	p := s.watchers[req.Msg.GetWatcherId()]
	s.mu.Unlock()
	if p == nil {
		return nil, unknownWatcher(req.Msg.GetWatcherId())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil && len(p.events) == 0 {
		return nil, wireError(p.watch.root, p.err)
	}
	resp := &pb.GetWatcherEventsResponse{Events: p.events}
	p.events = nil
	return connect.NewResponse(resp), nil
}

// RemoveWatcher implements the RPC.
func (s *Service) RemoveWatcher(_ context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	s.mu.Lock()
	p := s.watchers[req.Msg.GetWatcherId()]
	delete(s.watchers, req.Msg.GetWatcherId())
	s.mu.Unlock()
	if p == nil {
		return nil, unknownWatcher(req.Msg.GetWatcherId())
	}
	p.cancel()
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}

func unknownWatcher(id string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher with id %q not found", id[:min(len(id), 64)]))
}

// Close ends all watchers and waits for them; none can be created afterwards.
func (s *Service) Close() {
	s.mu.Lock()
	for _, p := range s.watchers {
		p.cancel()
	}
	s.watchers = nil
	s.mu.Unlock()
	s.wg.Wait()
}
