package transfer

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"path/filepath"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/metadata"
	"github.com/caisson-dev/caisson/agent/place"
	"github.com/caisson-dev/caisson/agent/signature"
)

// written is one uploaded file in the answer.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// upload serves POST /files.
func (s *Service) upload(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := s.authorize(r, q, signature.Write); err != nil {
		return err
	}
	user, err := s.user(q.Get("username"))
	if err != nil {
		return err
	}
	meta, err := metadata.FromHeader(r.Header)
	if err != nil {
		return failf(http.StatusBadRequest, "%s", err.Error())
	}
	body, err := decoded(r)
	if err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return failf(http.StatusBadRequest, "content type: %s", err.Error())
	}
	u := &receiver{s: s, user: user, meta: meta, seen: make(map[string]bool)}
	switch kind {
	case "application/octet-stream":
		if q.Get("path") == "" {
			return failf(http.StatusBadRequest, "path is required")
		}
		err = u.receive(q.Get("path"), body)
	case "multipart/form-data":
		err = u.multipart(q.Get("path"), params["boundary"], body)
	default:
		err = failf(http.StatusBadRequest, "content type '%s' is neither multipart/form-data nor application/octet-stream", kind)
	}
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, u.files)
	return nil
}

// decoded returns the body without its content coding.
func decoded(r *http.Request) (io.Reader, error) {
	switch coding := r.Header.Get("Content-Encoding"); coding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		z, err := gzip.NewReader(bufio.NewReaderSize(r.Body, 64<<10))
		if err != nil {
			return nil, failf(http.StatusBadRequest, "body is not gzip: %s", err.Error())
		}
		return z, nil
	default:
		return nil, failf(http.StatusBadRequest, "content encoding '%s' is not supported", coding)
	}
}

// receiver writes the files of one request.
type receiver struct {
	s     *Service
	user  account.User
	meta  map[string]string
	seen  map[string]bool
	files []written
}

// multipart receives every part called "file". Its target is path, or the
// part's whole file name when path is empty.
func (u *receiver) multipart(path, boundary string, body io.Reader) error {
	if boundary == "" {
		return failf(http.StatusBadRequest, "multipart body without a boundary")
	}
	u.files = []written{}
	mr := multipart.NewReader(bufio.NewReaderSize(body, copyBuffer), boundary)
	for {
		part, err := mr.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failf(http.StatusBadRequest, "multipart body: %s", err.Error())
		}
		if part.FormName() != "file" {
			continue
		}
		target := path
		if target == "" {
			// Part.FileName would strip the directories.
			_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
			if err != nil || params["filename"] == "" {
				return failf(http.StatusBadRequest, "part has neither a path nor a file name")
			}
			target = params["filename"]
		}
		if err := u.receive(target, part); err != nil {
			return err
		}
	}
}

// receive writes one file.
func (u *receiver) receive(name string, content io.Reader) error {
	path, err := u.s.resolve(u.user, name)
	if err != nil {
		return err
	}
	if u.seen[path] {
		return failf(http.StatusBadRequest, "path '%s' occurs twice", path)
	}
	u.seen[path] = true
	p, err := u.s.walker.Make(path, u.user)
	if err != nil {
		return fileFailure(path, err)
	}
	defer p.Close()
	if err := u.s.write(p, path, u.user, u.meta, content); err != nil {
		return err
	}
	u.files = append(u.files, written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: u.meta})
	return nil
}

// write makes content the content of the file at p, which the client calls
// path and which then belongs to u. A file that was not there before is removed
// again when that fails.
func (s *Service) write(p *place.Place, path string, u account.User, meta map[string]string, content io.Reader) (err error) {
	f, created, err := p.Write(u)
	if err != nil {
		return fileFailure(path, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fileFailure(path, cerr)
		}
		if err != nil && created {
			p.Discard()
		}
	}()
	src := &noted{r: content}
	out := &gather{w: f}
	if _, err = s.copy(out, src); err == nil {
		err = out.flush()
	}
	switch {
	case errors.As(src.err, new(*failure)):
		return src.err
	case src.err != nil:
		return failf(http.StatusBadRequest, "read body: %s", src.err.Error())
	case err != nil:
		return fileFailure(path, err)
	}
	return fileFailure(path, s.meta.Replace(f, path, meta))
}

// gather joins small writes, of which multipart bodies make many.
type gather struct {
	w   io.Writer
	buf []byte
}

func (g *gather) Write(p []byte) (int, error) {
	if len(g.buf) == 0 && len(p) >= copyBuffer/2 {
		return g.w.Write(p)
	}
	if g.buf == nil {
		g.buf = make([]byte, 0, copyBuffer)
	}
	if len(g.buf)+len(p) > cap(g.buf) {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > cap(g.buf) {
		return g.w.Write(p)
	}
	g.buf = append(g.buf, p...)
	return len(p), nil
}

func (g *gather) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.w.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}
