package transfer

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/place"
)

const (
	maxComposeBody  = 1 << 20
	maxComposeParts = 10000
)

// compose serves POST /files/compose: it concatenates files into one. The
// destination appears whole or not at all, and may be one of the sources.
func (s *Service) compose(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		SourcePaths []string `json:"source_paths"`
		Destination string   `json:"destination"`
		Username    string   `json:"username"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxComposeBody)).Decode(&req); err != nil {
		return failf(http.StatusBadRequest, "body: %s", err.Error())
	}
	if len(req.SourcePaths) == 0 || len(req.SourcePaths) > maxComposeParts || req.Destination == "" {
		return failf(http.StatusBadRequest, "source_paths (1 to %d) and destination are required", maxComposeParts)
	}
	user, err := s.user(req.Username)
	if err != nil {
		return err
	}
	dest, err := s.resolve(user, req.Destination)
	if err != nil {
		return err
	}
	if fi, err := os.Stat(dest); err == nil && fi.IsDir() {
		return fileFailure(dest, syscall.EISDIR)
	}
	sources := make([]string, len(req.SourcePaths))
	for i, p := range req.SourcePaths {
		if sources[i], err = s.resolve(user, p); err != nil {
			return err
		}
	}
	if err := s.concatenate(r.Context(), dest, user, sources); err != nil {
		return err
	}
	reply(w, http.StatusOK, []written{{Path: dest, Name: filepath.Base(dest), Type: "file"}})
	return nil
}

// concatenate writes a new file beside dest and renames it.
func (s *Service) concatenate(ctx context.Context, dest string, user account.User, sources []string) error {
	p, err := s.walker.Make(dest, user)
	if err != nil {
		return fileFailure(dest, err)
	}
	defer p.Close()
	temp, err := p.Temp()
	if err != nil {
		return fileFailure(dest, err)
	}
	defer temp.Close()
	if err := s.write(temp, dest, user, nil, &chain{walker: s.walker, paths: sources}); err != nil {
		return err
	}
	if err := temp.Move(ctx, p); err != nil {
		temp.Discard()
		return fileFailure(dest, err)
	}
	return nil
}

// chain reads files one after the other, holding one open at a time. What it
// reads comes to belong to a user of the guest, so links count as in writing.
type chain struct {
	walker *place.Walker
	paths  []string
	open   *os.File
}

// next opens the first of paths.
func (c *chain) next() error {
	path := c.paths[0]
	p, err := c.walker.Open(path)
	if err != nil {
		return fileFailure(path, err)
	}
	defer p.Close()
	if c.open, err = p.Read(); err != nil {
		return fileFailure(path, err)
	}
	c.paths = c.paths[1:]
	return nil
}

func (c *chain) Read(p []byte) (int, error) {
	for {
		if c.open == nil {
			if len(c.paths) == 0 {
				return 0, io.EOF
			}
			if err := c.next(); err != nil {
				return 0, err
			}
		}
		n, err := c.open.Read(p)
		if n > 0 {
			return n, nil
		}
		name := c.open.Name()
		_ = c.open.Close()
		c.open = nil
		if err != nil && err != io.EOF {
			c.paths = nil
			return 0, fileFailure(name, err)
		}
	}
}
