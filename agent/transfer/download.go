package transfer

import (
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/caisson-dev/caisson/agent/signature"
)

// download serves GET /files.
func (s *Service) download(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := s.authorize(r, q, signature.Read); err != nil {
		return err
	}
	user, err := s.user(q.Get("username"))
	if err != nil {
		return err
	}
	path, err := s.resolve(user, q.Get("path"))
	if err != nil {
		return err
	}
	compress, err := negotiate(r.Header)
	if err != nil {
		return err
	}
	// Links are followed with root's rights: nothing changes, and who reads is
	// the client. Opening a fifo does not wait for a writer, and a terminal does
	// not become the agent's.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return fileFailure(path, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return fileFailure(path, err)
	case fi.IsDir():
		return fileFailure(path, syscall.EISDIR)
	case !fi.Mode().IsRegular():
		return failf(http.StatusBadRequest, "path '%s' is not a regular file", path)
	}
	h := w.Header()
	h.Set("Content-Disposition", disposition(filepath.Base(path)))
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	if compress {
		return s.sendCompressed(w, f, path)
	}
	if fi.Size() == 0 {
		return s.sendUnsized(w, f, path)
	}
	http.ServeContent(bulk{w, s}, r, filepath.Base(path), fi.ModTime(), f)
	return nil
}

// bulk makes http.ServeContent copy in large units; sendfile(2) in gVisor uses
// small ones.
type bulk struct {
	http.ResponseWriter
	s *Service
}

// ReadFrom is what io.Copy calls.
func (b bulk) ReadFrom(src io.Reader) (int64, error) { return b.s.copy(b.ResponseWriter, src) }

// sendUnsized serves a file that says it is empty: it may be one of procfs.
func (s *Service) sendUnsized(w http.ResponseWriter, f *os.File, path string) error {
	head := make([]byte, 64<<10)
	n, err := f.Read(head)
	if err != nil && !errors.Is(err, io.EOF) {
		return fileFailure(path, err)
	}
	if n == 0 {
		w.Header().Set("Content-Type", contentType(path, nil))
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.Header().Set("Content-Type", contentType(path, head[:n]))
	if _, err := w.Write(head[:n]); err == nil {
		s.finish(w, f)
	}
	return nil
}

func (s *Service) sendCompressed(w http.ResponseWriter, f *os.File, path string) error {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fileFailure(path, err)
	}
	w.Header().Set("Content-Type", contentType(path, head[:n]))
	if n == 0 {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	s.finish(z, f)
	_ = z.Close() // the client went away
	return nil
}

// finish copies the rest of a response whose headers are sent. A file that
// cannot be read to its end must not look complete, so the connection breaks.
func (s *Service) finish(w io.Writer, f *os.File) {
	src := &noted{r: f}
	_, _ = s.copy(w, src)
	if src.err != nil {
		panic(http.ErrAbortHandler)
	}
}

// noted remembers the error of a reader, so that it is told from the writer's.
type noted struct {
	r   io.Reader
	err error
}

func (n *noted) Read(p []byte) (int, error) {
	c, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return c, err
}

func contentType(path string, head []byte) string {
	if t := mime.TypeByExtension(filepath.Ext(path)); t != "" {
		return t
	}
	return http.DetectContentType(head)
}

func disposition(name string) string {
	if d := mime.FormatMediaType("inline", map[string]string{"filename": strings.ToValidUTF8(name, "_")}); d != "" {
		return d
	}
	return "inline"
}

// negotiate decides whether to compress. Runtimes' fetch asks for gzip among
// others without wanting it, and compressing costs more than it saves on the
// way to a sandbox; so gzip is sent only when it is the one coding asked for,
// or identity is refused. A range is always of the identity.
func negotiate(h http.Header) (compress bool, err error) {
	accept := h.Values("Accept-Encoding")
	if len(accept) == 0 {
		return false, nil
	}
	weights := map[string]float64{}
	for item := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(item), ";")
		if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
			continue
		}
		weights[name] = weight(params)
	}
	any, hasAny := weights["*"]
	gz, hasGzip := weights["gzip"]
	identity, hasIdentity := weights["identity"]
	identityOK := !hasIdentity && (!hasAny || any > 0) || hasIdentity && identity > 0
	gzipOK := hasGzip && gz > 0 || !hasGzip && hasAny && any > 0
	switch {
	case h.Get("Range") != "" && identityOK:
		return false, nil
	case !identityOK && gzipOK && h.Get("Range") == "":
		return true, nil
	case !identityOK:
		return false, failf(http.StatusNotAcceptable, "no acceptable encoding: identity and gzip are offered")
	}
	for name := range weights {
		if name != "gzip" && name != "identity" {
			return false, nil
		}
	}
	return hasGzip && gz > 0 && gz >= identity, nil
}

// weight returns the q parameter, 1 when there is none, 0 when it is malformed.
func weight(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		if v, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
			q, err := strconv.ParseFloat(v, 64)
			if err != nil || q < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}
