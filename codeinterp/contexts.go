package codeinterp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

var (
	errNotFound = errors.New("not found")
	errTooMany  = errors.New("too many contexts")
)

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// add records a context. With a name it is the default one of that language.
func (s *Server) add(language, cwd, defaultOf string) *Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLocked(language, cwd, defaultOf)
}

func (s *Server) addLocked(language, cwd, defaultOf string) *Context {
	c := newContext(s, newID(), language, cwd)
	c.defaultOf = defaultOf
	s.contexts = append(s.contexts, c)
	return c
}

// create makes a context and starts its kernel.
func (s *Server) create(ctx context.Context, language, cwd string) (*Context, error) {
	s.mu.Lock()
	if len(s.contexts)+s.making >= maxContexts {
		s.mu.Unlock()
		return nil, fmt.Errorf("a sandbox has at most %d contexts: %w", maxContexts, errTooMany)
	}
	s.making++
	s.mu.Unlock()
	c := newContext(s, newID(), language, cwd)
	err := c.start(ctx)
	if err == nil {
		// Nobody knows its id who could remove it.
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	s.making--
	if err == nil && s.closed {
		err = errors.New("the code interpreter is ending")
	}
	if err == nil {
		s.contexts = append(s.contexts, c)
	}
	s.mu.Unlock()
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// find returns a context by its id.
func (s *Server) find(id string) (*Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.contexts {
		if c.ID == id {
			return c, nil
		}
	}
	return nil, fmt.Errorf("Context %s %w", id, errNotFound) //nolint:staticcheck // the text is a contract
}

// defaultContext returns the context of a language that is used when none is
// named, made now if there is none; nil for a language without a kernel here.
// Its kernel starts when it is used.
func (s *Server) defaultContext(language string) *Context {
	runtime := kernel.Runtime(language)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.contexts {
		// TypeScript needs more than its kernel.
		if c.defaultOf == runtime && (runtime == language || supported(language)) {
			return c
		}
	}
	if !supported(language) || s.closed {
		return nil
	}
	return s.addLocked(runtime, s.cfg.Dir, runtime)
}

// list returns the contexts, the newest last.
func (s *Server) list() []*Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.contexts)
}

// remove ends a context.
func (s *Server) remove(id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.contexts = slices.DeleteFunc(s.contexts, func(x *Context) bool { return x == c })
	s.mu.Unlock()
	c.close()
	return nil
}

func (s *Server) closeContexts() {
	s.mu.Lock()
	s.closed = true
	all := s.contexts
	s.contexts = nil
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(c.close)
	}
	wg.Wait()
}
