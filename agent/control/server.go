package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// serverQueue bounds messages to a server that does not read; events are
	// dropped when it is full, replies wait.
	serverQueue = 256
	// concurrentDials bounds dials in progress.
	concurrentDials = 64
	// retryRead is the pause after a read error: the peer may be replaced.
	retryRead = 200 * time.Millisecond
)

// Handler is what the agent does when it is asked.
type Handler interface {
	// Init takes an identity over; an error that is
	// errdefs.ErrInvalidArgument is reported as such.
	Init(ctx context.Context, in Init) error
	// Prepare does ahead what of an Init does not need its secrets; in carries
	// none. Only an agent without an identity can be prepared.
	Prepare(ctx context.Context, in Init) error
	Health() Health
	Freeze()
	// Dial connects to a local port and deposits the connection; its error is
	// ErrRefused when nothing listens.
	Dial(ctx context.Context, port uint16) (Ticket, error)
}

// Server is the agent's end of the channel.
type Server struct {
	rw    io.ReadWriter
	h     Handler
	log   *slog.Logger
	out   chan []byte
	dials chan struct{}

	mu    sync.Mutex // guards epoch
	epoch uint64
}

// NewServer returns the agent's end over rw; Run serves it.
func NewServer(rw io.ReadWriter, h Handler, log *slog.Logger) *Server {
	return &Server{
		rw:    rw,
		h:     h,
		log:   log,
		out:   make(chan []byte, serverQueue),
		dials: make(chan struct{}, concurrentDials),
	}
}

// Emit tells the server of ev. It never blocks; the event is dropped when the
// server does not keep up or nobody has greeted yet.
func (s *Server) Emit(ev Event) {
	s.mu.Lock()
	epoch := s.epoch
	s.mu.Unlock()
	if epoch == 0 {
		return
	}
	ev.Cmd = ev.Cmd[:min(len(ev.Cmd), 256)]
	b, err := encodeMessage(epoch, message{Kind: kindEvent, Event: &ev}, maxToServer)
	if err != nil {
		return
	}
	select {
	case s.out <- b:
	default:
	}
}

// Run greets and serves until ctx ends or rw ends for good (io.EOF or
// io.ErrClosedPipe). Other errors of rw are waited out, because a restored
// guest gets a new peer on the same descriptor. The caller must close rw to
// unblock Run after ctx has ended.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.write(ctx) })
	s.send(ctx, 0, message{Kind: kindHello})

	fr := newFrameReader(s.rw, maxToAgent)
	for {
		f, err := fr.next()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return fmt.Errorf("control channel: %w", err)
		}
		if err != nil {
			s.log.Warn("read control channel", slog.Any("error", err))
			select {
			case <-time.After(retryRead):
			case <-ctx.Done():
				return nil
			}
			fr = newFrameReader(s.rw, maxToAgent)
			continue
		}
		var m message
		if json.Unmarshal(f.payload, &m) == nil {
			s.handle(ctx, &wg, f.epoch, m)
		}
	}
}

func (s *Server) handle(ctx context.Context, wg *sync.WaitGroup, epoch uint64, m message) {
	s.mu.Lock()
	if m.Kind == kindHello && epoch != 0 {
		s.epoch = epoch
	}
	current := s.epoch
	s.mu.Unlock()
	if epoch != current || epoch == 0 {
		return
	}
	switch m.Kind {
	case kindHello:
		s.send(ctx, epoch, message{Kind: kindHello})
	case kindRequest:
		if m.Op != opDial {
			s.send(ctx, epoch, s.answer(ctx, m))
			return
		}
		select {
		case s.dials <- struct{}{}:
		default:
			s.send(ctx, epoch, message{Kind: kindReply, ID: m.ID, Code: codeFailed, Error: "too many dials"})
			return
		}
		wg.Go(func() {
			defer func() { <-s.dials }()
			s.send(ctx, epoch, s.answer(ctx, m))
		})
	}
}

func (s *Server) answer(ctx context.Context, m message) message {
	r := message{Kind: kindReply, ID: m.ID}
	var err error
	switch m.Op {
	case opInit, opPrepare:
		do := s.h.Init
		if m.Op == opPrepare {
			do = s.h.Prepare
		}
		if m.Init == nil {
			err = fmt.Errorf("no init: %w", errdefs.ErrInvalidArgument)
			break
		}
		err = do(ctx, *m.Init)
	case opHealth:
		h := s.h.Health()
		r.Health = &h
	case opFreeze:
		s.h.Freeze()
	case opDial:
		var t Ticket
		if t, err = s.h.Dial(ctx, m.Port); err == nil {
			r.Ticket = t[:]
		}
	default:
		err = fmt.Errorf("unknown operation: %w", errdefs.ErrInvalidArgument)
	}
	if err == nil {
		return r
	}
	r.Error = err.Error()[:min(len(err.Error()), 512)]
	switch {
	case errors.Is(err, ErrRefused):
		r.Code = codeRefused
	case errors.Is(err, errdefs.ErrInvalidArgument):
		r.Code = codeInvalid
	default:
		r.Code = codeFailed
	}
	return r
}

func (s *Server) send(ctx context.Context, epoch uint64, m message) {
	b, err := encodeMessage(epoch, m, maxToServer)
	if err != nil {
		s.log.Warn("control message dropped", slog.Any("error", err))
		return
	}
	select {
	case s.out <- b:
	case <-ctx.Done():
	}
}

func (s *Server) write(ctx context.Context) {
	for {
		select {
		case b := <-s.out:
			if _, err := s.rw.Write(b); err != nil {
				s.log.Debug("write control channel", slog.Any("error", err))
			}
		case <-ctx.Done():
			return
		}
	}
}
