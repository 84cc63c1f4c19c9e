// Package filesystem is the agent's filesystem service: stat, list, make, move,
// remove and watch. It works with the agent's own rights, as far as package
// place lets links use them, and gives what it creates to the user of the
// request. File contents travel elsewhere, see
// package transfer.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"connectrpc.com/connect"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/metadata"
	"github.com/caisson-dev/caisson/agent/place"
	"github.com/caisson-dev/caisson/agent/session"
	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// Service implements filesystemconnect.FilesystemHandler.
type Service struct {
	sess   *session.Session
	meta   *metadata.Store
	walker *place.Walker
	log    *slog.Logger

	mu       sync.Mutex // guards watchers
	watchers map[string]*poller
	wg       sync.WaitGroup
}

// New returns the service.
func New(s *session.Session, meta *metadata.Store, log *slog.Logger) *Service {
	return &Service{sess: s, meta: meta, walker: place.NewWalker(s.Accounts), log: log, watchers: make(map[string]*poller)}
}

// Stat implements the RPC.
func (s *Service) Stat(_ context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	e, err := s.entry(path)
	if err != nil {
		return nil, wireError(path, err)
	}
	return connect.NewResponse(&pb.StatResponse{Entry: e}), nil
}

// MakeDir implements the RPC.
func (s *Service) MakeDir(_ context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	path, user, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory already exists: '%s'", path))
	case err == nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("path exists and is not a directory: '%s'", path))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, wireError(path, err)
	}
	created, err := s.walker.MakeAll(path, user)
	if err != nil {
		return nil, wireError(path, err)
	}
	if !created {
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory already exists: '%s'", path))
	}
	e, err := s.entry(path)
	if err != nil {
		return nil, wireError(path, err)
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: e}), nil
}

// Move implements the RPC.
func (s *Service) Move(ctx context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	from, user, err := s.resolve(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	to, _, err := s.resolve(req.Header(), req.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	if err := s.move(ctx, from, to, user); err != nil {
		return nil, err
	}
	s.meta.Moved(from, to)
	e, err := s.entry(to)
	if err != nil {
		return nil, wireError(to, err)
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: e}), nil
}

// move's error has a code.
func (s *Service) move(ctx context.Context, from, to string, user account.User) error {
	// First, so that nothing is created for a source that is missing.
	if _, err := os.Lstat(from); err != nil {
		return wireError(from, err)
	}
	src, err := s.walker.Open(from)
	if err != nil {
		return wireError(from, err)
	}
	defer src.Close()
	dst, err := s.walker.Make(to, user)
	if err != nil {
		return wireError(filepath.Dir(to), err)
	}
	defer dst.Close()
	return wireError(from, src.Move(ctx, dst))
}

// ListDir implements the RPC.
func (s *Service) ListDir(ctx context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entries, err := s.list(ctx, path, int(min(max(req.Msg.GetDepth(), 1), 1<<20)))
	if err != nil {
		return nil, wireError(path, err)
	}
	return connect.NewResponse(&pb.ListDirResponse{Entries: entries}), nil
}

// Remove implements the RPC.
func (s *Service) Remove(_ context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the root directory cannot be removed"))
	}
	if err := s.remove(path); err != nil {
		return nil, wireError(path, err)
	}
	s.meta.Removed(path)
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}

func (s *Service) remove(path string) error {
	p, err := s.walker.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return p.RemoveAll()
}

// resolve returns the path and the user of a request.
func (s *Service) resolve(h http.Header, path string) (string, account.User, error) {
	user, err := s.sess.HeaderUser(h)
	if err != nil {
		return "", user, connect.NewError(connect.CodeUnauthenticated, err)
	}
	abs, err := account.Resolve(user, s.sess.Workdir(), path)
	if err != nil {
		return "", user, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return abs, user, nil
}

// wireError gives an error of a file operation its code.
func wireError(path string, err error) error {
	if err == nil || errors.As(err, new(*connect.Error)) {
		return err
	}
	if denied, ok := errors.AsType[*place.LinkError](err); ok {
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("'%s': %w", path, denied))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("path '%s' does not exist", path))
	}
	for _, c := range []struct {
		errno syscall.Errno
		code  connect.Code
	}{
		{syscall.ELOOP, connect.CodeFailedPrecondition},
		{syscall.ENOTDIR, connect.CodeInvalidArgument},
		{syscall.EISDIR, connect.CodeInvalidArgument},
		{syscall.EINVAL, connect.CodeInvalidArgument},
		{syscall.ENAMETOOLONG, connect.CodeInvalidArgument},
		{syscall.ENOTEMPTY, connect.CodeInvalidArgument},
		{syscall.EEXIST, connect.CodeAlreadyExists},
		{syscall.EACCES, connect.CodePermissionDenied},
		{syscall.EPERM, connect.CodePermissionDenied},
		{syscall.EROFS, connect.CodePermissionDenied},
		{syscall.ENOSPC, connect.CodeResourceExhausted},
		{syscall.EDQUOT, connect.CodeResourceExhausted},
	} {
		if errors.Is(err, c.errno) {
			return connect.NewError(c.code, fmt.Errorf("'%s': %w", path, c.errno))
		}
	}
	if errors.Is(err, context.Canceled) {
		return connect.NewError(connect.CodeCanceled, err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	return connect.NewError(connect.CodeInternal, err)
}
