package codeinterp

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"time"
)

const (
	// agentTimeout bounds the question for the sandbox's variables.
	agentTimeout = 2 * time.Second
	maxVariables = 4 << 20
)

// globals returns the variables of the sandbox that the kernel does not have
// yet: all of them at its first cell, and at the first cell under another
// access token, which a copy of this sandbox has. The caller has the turn.
func (c *Context) globals(ctx context.Context, token string) map[string]string {
	mark := sha256.Sum256([]byte(token))
	if c.server.cfg.AgentURL == "" || c.read && c.token == mark {
		return nil
	}
	vars, ok := c.server.variables(ctx, token)
	if !ok {
		return nil
	}
	first := !c.read || !maps.Equal(vars, c.known)
	c.read, c.token, c.known = true, mark, vars
	if !first {
		return nil
	}
	return vars
}

func (s *Server) variables(ctx context.Context, token string) (map[string]string, bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.AgentURL+"/envs", nil)
	if err != nil {
		return nil, false
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	res, err := s.agent.Do(req)
	if err != nil {
		s.cfg.Log.Warn("the sandbox's variables are not known", slog.Any("error", err))
		return nil, false
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, true // not for this caller to know
	}
	var vars map[string]string
	if json.NewDecoder(io.LimitReader(res.Body, maxVariables)).Decode(&vars) != nil {
		return nil, false
	}
	return vars, true
}
