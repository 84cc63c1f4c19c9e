// Package process is the agent's process service: it runs commands for RPC
// clients and streams what they write. A process outlives the request that
// started it; streams come and go. What nobody reads is discarded, what
// somebody reads slowly slows its own process and nothing else.
package process

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/session"
	pb "github.com/caisson-dev/caisson/gen/process"
)

const (
	keepaliveHeader  = "Keepalive-Ping-Interval"
	defaultKeepalive = 90 * time.Second
	// killWait is how long SendSignal(SIGKILL) waits for the process to be
	// reaped, so that it is gone when the call returns.
	killWait = time.Second
)

// Service implements processconnect.ProcessHandler.
type Service struct {
	sess     *session.Session
	launcher *child.Launcher
	emit     func(control.Event)
	path     string
	log      *slog.Logger
	table    *table
	procs    sync.WaitGroup
	unused   atomic.Uint32
}

// New returns the service. path is the PATH that commands get; emit receives
// limit and process events and must not block.
func New(s *session.Session, l *child.Launcher, path string, emit func(control.Event), log *slog.Logger) *Service {
	return &Service{sess: s, launcher: l, path: path, emit: emit, log: log, table: newTable()}
}

// Wait returns when every process has ended, without waiting for what else
// holds their pipes. The launcher must have stopped before.
func (s *Service) Wait() {
	s.table.each((*proc).letGo)
	s.procs.Wait()
}

// Count is the number of running processes that this service started.
func (s *Service) Count() int { return len(s.table.running()) }

// List implements the RPC.
func (s *Service) List(context.Context, *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	resp := &pb.ListResponse{}
	for _, p := range s.table.running() {
		resp.Processes = append(resp.Processes, &pb.ProcessInfo{Config: p.config, Pid: p.pid, Tag: p.tag})
	}
	return connect.NewResponse(resp), nil
}

// Start implements the RPC.
func (s *Service) Start(ctx context.Context, req *connect.Request[pb.StartRequest], stream *connect.ServerStream[pb.StartResponse]) error {
	p, sub, err := s.start(ctx, req)
	if err != nil {
		return err
	}
	defer sub.leave()
	var event pb.StartResponse
	err = s.stream(ctx, req.Header(), p.pid, sub, func(ev *pb.ProcessEvent) error {
		if ev.GetEnd() != nil && p.timedOut() {
			return errDeadline
		}
		event.Event = ev
		return stream.Send(&event)
	})
	if p.timedOut() {
		return connect.NewError(connect.CodeDeadlineExceeded, errDeadline)
	}
	return err
}

// Connect implements the RPC.
func (s *Service) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], stream *connect.ServerStream[pb.ConnectResponse]) error {
	var event pb.ConnectResponse
	send := func(ev *pb.ProcessEvent) error {
		event.Event = ev
		return stream.Send(&event)
	}
	p, late, err := s.table.find(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	if late == nil {
		sub, ok := p.hub.join()
		if ok {
			defer sub.leave()
			return s.stream(ctx, req.Header(), p.pid, sub, send)
		}
		// It ended between the two steps; its end event is fixed by now.
		late = &ended{pid: p.pid, end: p.endEvent()}
	}
	if err := send(startEvent(late.pid)); err != nil {
		return err
	}
	return send(late.end)
}

// stream sends the start event and then all of sub until the end event.
func (s *Service) stream(ctx context.Context, h http.Header, pid uint32, sub *subscriber, send func(*pb.ProcessEvent) error) error {
	if err := send(startEvent(pid)); err != nil {
		return err
	}
	flush(ctx)
	every := keepaliveInterval(h)
	keepalive := time.NewTicker(every)
	defer keepalive.Stop()
	for {
		select {
		case ev := <-sub.events:
			if err := send(ev); err != nil {
				return err
			}
			if ev.GetEnd() != nil {
				return nil
			}
			if len(sub.events) == 0 {
				flush(ctx)
			}
			keepalive.Reset(every)
		case <-keepalive.C:
			if err := send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}); err != nil {
				return err
			}
			flush(ctx)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return connect.NewError(connect.CodeDeadlineExceeded, errDeadline)
			}
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}

// Update implements the RPC.
func (s *Service) Update(_ context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	p, err := s.table.live(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if err := p.resize(size); err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

// SendInput implements the RPC.
func (s *Service) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	p, err := s.table.live(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.input(ctx, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

// StreamInput implements the RPC.
func (s *Service) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var p *proc
	for stream.Receive() {
		switch ev := stream.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			var err error
			if p, err = s.table.live(ev.Start.GetProcess()); err != nil {
				return nil, err
			}
		case *pb.StreamInputRequest_Data:
			if p == nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("input before start"))
			}
			if err := p.input(ctx, ev.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

// SendSignal implements the RPC.
func (s *Service) SendSignal(ctx context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	p, err := s.table.live(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	sig, ok := signals[req.Msg.GetSignal()]
	if !ok {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("unknown signal "+req.Msg.GetSignal().String()))
	}
	if err := p.signal(ctx, sig); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}

// CloseStdin implements the RPC.
func (s *Service) CloseStdin(_ context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	p, err := s.table.live(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.closeStdin(); err != nil {
		return nil, connect.NewError(connect.CodeUnknown, err)
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func keepaliveInterval(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get(keepaliveHeader))
	if err != nil || n <= 0 || n > 24*3600 {
		return defaultKeepalive
	}
	return time.Duration(n) * time.Second
}

func startEvent(pid uint32) *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: pid}}}
}
