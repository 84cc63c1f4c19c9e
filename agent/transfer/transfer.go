// Package transfer moves file contents over HTTP: GET and POST /files, by token
// or signed link, and POST /files/compose. Contents are streamed, never held.
package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/metadata"
	"github.com/caisson-dev/caisson/agent/place"
	"github.com/caisson-dev/caisson/agent/session"
	"github.com/caisson-dev/caisson/agent/signature"
)

const tokenHeader = "X-Access-Token"

// copyBuffer is the unit of all copying; system calls are dear in gVisor.
const copyBuffer = 512 << 10

// Service serves the routes; see Register.
type Service struct {
	sess   *session.Session
	meta   *metadata.Store
	walker *place.Walker
	log    *slog.Logger
	bufs   sync.Pool
}

// New returns the service.
func New(s *session.Session, meta *metadata.Store, log *slog.Logger) *Service {
	return &Service{
		sess: s, meta: meta, walker: place.NewWalker(s.Accounts), log: log,
		bufs: sync.Pool{New: func() any { return new([copyBuffer]byte) }},
	}
}

// Register adds the routes. GET and POST /files check tokens and signatures
// themselves; the caller guards the other.
func (s *Service) Register(mux *http.ServeMux) {
	mux.Handle("GET /files", route(s.download))
	mux.Handle("POST /files", route(s.upload))
	mux.Handle("POST /files/compose", route(s.compose))
}

// failure is an error with the status and text that the client sees.
type failure struct {
	code    int
	message string
}

func (f *failure) Error() string { return f.message }

func failf(code int, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

// route writes what a handler returns as an error.
func route(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		f := &failure{http.StatusInternalServerError, err.Error()}
		errors.As(err, &f)
		for _, name := range []string{"Content-Disposition", "Content-Encoding", "Content-Length", "Last-Modified"} {
			w.Header().Del(name)
		}
		reply(w, f.code, struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}{f.code, f.message})
	})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client went away
}

// authorize judges a request for /files: a token, if there is one, else the
// signature.
func (s *Service) authorize(r *http.Request, q url.Values, op signature.Operation) error {
	if tokens, ok := r.Header[tokenHeader]; ok {
		if len(tokens) == 1 && s.sess.TokenIs(tokens[0]) {
			return nil
		}
		return failf(http.StatusUnauthorized, "wrong access token")
	}
	err := signature.Check(q, op, s.sess.Token(), time.Now())
	if errors.Is(err, signature.ErrMissing) {
		return failf(http.StatusUnauthorized, "missing access token or signature")
	}
	if err != nil {
		return failf(http.StatusUnauthorized, "%s", err.Error())
	}
	return nil
}

// user returns the user that a request names, or the default.
func (s *Service) user(name string) (account.User, error) {
	u, err := s.sess.User(name)
	var unknown *session.UserError
	if errors.As(err, &unknown) {
		return u, failf(http.StatusUnauthorized, "%s", unknown.Error())
	}
	return u, err
}

func (s *Service) resolve(u account.User, path string) (string, error) {
	abs, err := account.Resolve(u, s.sess.Workdir(), path)
	if err != nil {
		return "", failf(http.StatusBadRequest, "%s", err.Error())
	}
	return abs, nil
}

// fileFailure gives an error of a file operation on path its status.
func fileFailure(path string, err error) error {
	if err == nil || errors.As(err, new(*failure)) {
		return err
	}
	if denied, ok := errors.AsType[*place.LinkError](err); ok {
		return failf(http.StatusForbidden, "path '%s': %s", path, denied.Error())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf(http.StatusNotFound, "path '%s' does not exist", path)
	case errors.Is(err, syscall.EISDIR):
		return failf(http.StatusBadRequest, "path '%s' is a directory", path)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return failf(http.StatusInsufficientStorage, "not enough space to write '%s'", path)
	}
	for _, e := range []syscall.Errno{syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENXIO} {
		if errors.Is(err, e) {
			return failf(http.StatusBadRequest, "path '%s': %s", path, e.Error())
		}
	}
	return failf(http.StatusInternalServerError, "path '%s': %s", path, err.Error())
}

// copy streams src to dst in large units.
func (s *Service) copy(dst io.Writer, src io.Reader) (int64, error) {
	buf := s.bufs.Get().(*[copyBuffer]byte)
	defer s.bufs.Put(buf)
	// Wrapped, or the generic fast paths would choose smaller units.
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}
