package transfer

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
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
	temp := filepath.Join(filepath.Dir(dest), ".caisson-"+rand.Text())
	if err := s.write(temp, user, nil, &chain{paths: sources}); err != nil {
		return err
	}
	if err := os.Rename(temp, dest); err != nil {
		_ = os.Remove(temp)
		return fileFailure(dest, err)
	}
	reply(w, http.StatusOK, []written{{Path: dest, Name: filepath.Base(dest), Type: "file"}})
	return nil
}

// chain reads files one after the other, holding one open at a time.
type chain struct {
	paths []string
	open  *os.File
}

func (c *chain) Read(p []byte) (int, error) {
	for {
		if c.open == nil {
			if len(c.paths) == 0 {
				return 0, io.EOF
			}
			f, err := os.OpenFile(c.paths[0], os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				return 0, fileFailure(c.paths[0], err)
			}
			if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
				_ = f.Close()
				return 0, failf(http.StatusBadRequest, "path '%s' is not a regular file", c.paths[0])
			}
			c.open, c.paths = f, c.paths[1:]
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
