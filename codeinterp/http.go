package codeinterp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

const (
	// maxRequest bounds a request, and so the code of one cell.
	maxRequest  = 32 << 20
	tokenHeader = "X-Access-Token"
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { answer(w, "OK") })
	mux.HandleFunc("POST /execute", s.handleExecute)
	mux.HandleFunc("POST /contexts", s.handleCreate)
	mux.HandleFunc("GET /contexts", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.list()) })
	mux.HandleFunc("POST /contexts/{id}/restart", s.handleRestart)
	mux.HandleFunc("DELETE /contexts/{id}", s.handleRemove)
	return allowOrigins(mux)
}

// allowOrigins lets pages of any origin call us.
func allowOrigins(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS")
			h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
			h.Set("Access-Control-Max-Age", "7200")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text)
}

// decode reads a request's body into v and answers if it cannot. Unknown
// members are allowed, null is as good as absent.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("Request is larger than %d MiB", maxRequest>>20))
		return false
	}
	if err != nil {
		return false
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	if err := json.Unmarshal(body, v); err != nil {
		invalid(w, "body", err.Error())
		return false
	}
	return true
}

// invalid answers as the schema check of the original does.
func invalid(w http.ResponseWriter, member, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"detail": []any{map[string]any{"loc": []string{"body", member}, "msg": why, "type": "value_error"}},
	})
}

func (s *Server) handleExecute(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Code     *string           `json:"code"`
		Context  string            `json:"context_id"`
		Language string            `json:"language"`
		Env      map[string]string `json:"env_vars"`
	}
	if !decode(w, r, &in) {
		return
	}
	if in.Code == nil {
		invalid(w, "code", "Field required")
		return
	}
	for name := range in.Env {
		if !isName(name) {
			invalid(w, "env_vars", fmt.Sprintf("%.100q is not the name of a variable", name))
			return
		}
	}
	if in.Context != "" && in.Language != "" {
		refuse(w, http.StatusBadRequest, "Only one of context_id or language can be provided")
		return
	}
	language := kernel.Normalize(in.Language)
	var c *Context
	if in.Context != "" {
		var err error
		if c, err = s.find(in.Context); err != nil {
			refuse(w, http.StatusNotFound, err.Error())
			return
		}
		language = c.Language
	} else {
		if c = s.defaultContext(language); c == nil {
			refuse(w, http.StatusInternalServerError, unsupported(language))
			return
		}
	}
	s.stream(w, r, c, request{code: *in.Code, language: language, token: r.Header.Get(tokenHeader), env: in.Env})
}

// stream runs one cell and answers with what comes of it.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, c *Context, req request) {
	// Reading the request to its end lets the server notice a client that leaves.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newStream(w)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		out.keepAlive(stop)
	}()
	err := c.execute(ctx, req, out)
	close(stop)
	<-stopped
	if err == nil {
		return
	}
	if out.wrote() {
		out.event(kernel.Event{Kind: kernel.Error, Name: "UnexpectedEndOfExecution", Value: err.Error(), Traceback: err.Error()})
		out.end()
		return
	}
	refuse(w, http.StatusInternalServerError, err.Error())
}

// isName says whether every kernel can take a variable of that name.
func isName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

func supported(language string) bool { return slices.Contains(kernel.Supported(), language) }

func unsupported(language string) string {
	return fmt.Sprintf("Language %q is not supported in this sandbox; it has %s", language, strings.Join(kernel.Supported(), ", "))
}

func (s *Server) handleCreate(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Language string `json:"language"`
		Cwd      string `json:"cwd"`
	}
	if !decode(w, r, &in) {
		return
	}
	language := kernel.Normalize(in.Language)
	if in.Cwd == "" {
		in.Cwd = s.cfg.Dir
	}
	if !supported(language) {
		refuse(w, http.StatusInternalServerError, unsupported(language))
		return
	}
	c, err := s.create(r.Context(), language, in.Cwd)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer(w, c)
}

func (s *Server) handleRestart(w http.ResponseWriter, r *http.Request) {
	c, err := s.find(r.PathValue("id"))
	if err != nil {
		refuse(w, http.StatusNotFound, err.Error())
		return
	}
	if err := c.restart(r.Context()); err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer(w, nil)
}

func (s *Server) handleRemove(w http.ResponseWriter, r *http.Request) {
	if err := s.remove(r.PathValue("id")); err != nil {
		refuse(w, http.StatusNotFound, err.Error())
		return
	}
	answer(w, nil)
}
