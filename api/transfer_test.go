package api_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	format "github.com/caisson-dev/caisson/template/archive"
	"github.com/caisson-dev/caisson/template/oci"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/caisson-dev/caisson/template/transfer"
)

func (s *stack) newTransfers(t *testing.T, builds *queue.Queue, log *slog.Logger) (*transfer.Transfers, error) {
	t.Helper()
	dir := t.TempDir()
	images, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		return nil, err
	}
	vault, err := snapshot.NewLocal(filepath.Join(dir, "snapshots"))
	if err != nil {
		return nil, err
	}
	puller, err := oci.New(oci.Options{Dir: filepath.Join(dir, "index"), Images: images})
	if err != nil {
		return nil, err
	}
	return transfer.New(transfer.Deps{
		Catalog: template.NewCatalog(s.store, images), Builds: builds, Spool: s.uploads, Unpacker: puller, Images: images, Vault: vault, Names: s.store,
		Audit: s.store, Fits: func(snapshot.Artifact) error { return nil }, Seed: identity.NewSeed(), MaxBytes: 2 * api.MaxBody, Log: log,
	})
}

// largeArchive is that of a template with more bytes than other requests may have.
func largeArchive(t *testing.T) []byte {
	t.Helper()
	noise := make([]byte, api.MaxBody+1<<20)
	_, _ = rand.Read(noise)
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Build(f, []erofs.File{{Path: "bin/sh", Mode: 0o755}, {Path: "noise", Mode: 0o644, Data: noise}}); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	e, err := format.New(t.Context(), format.Source{Image: img, About: format.About{Name: "large", Tag: "v1"}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTransfers(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	const imports = "/native/v1/templates/import"
	raw := string(largeArchive(t))
	s.callAs(t, "wrong", "POST", imports, raw[:100]).wants(t, "import without a key", 401, "")
	s.call(t, "POST", imports+"?name=other/x", raw).wants(t, "import under another team's name", 400, "own team")
	s.call(t, "POST", imports+"?name=x%20y", "").wants(t, "import under no name", 400, "name")
	s.call(t, "POST", imports, raw[:len(raw)-2000]).wants(t, "import of a truncated one", 400, "truncated")
	s.call(t, "POST", imports, strings.Repeat("x", 2*api.MaxBody+1)).wants(t, "import of a large one", 413, "the limit is")
	// Its length is not known.
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.url+imports, io.MultiReader(strings.NewReader(raw[:100])))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.key)
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("import without a length = %d", resp.StatusCode)
	}
	s.call(t, "GET", "/native/v1/templates/large/export", nil).wants(t, "export of what was refused", 404, "")
	var made struct {
		Names, Tags, Notes []string
		Status, BuildID    string
		Memory             bool
	}
	s.call(t, "POST", imports, raw).into(t, &made)
	if made.Status != "ready" || len(made.Names) != 1 || made.Names[0] != "large" || len(made.Tags) != 1 || made.Tags[0] != "v1" || made.Memory || made.Notes != nil {
		t.Errorf("import = %+v", made)
	}
	r := s.call(t, "GET", "/native/v1/templates/large:v1/export", nil)
	if r.status != 200 || r.header.Get("Content-Type") != "application/x-tar" || r.header.Get("Content-Length") != strconv.Itoa(len(r.text)) ||
		r.header.Get("Content-Disposition") != "attachment; filename=large.tar" {
		t.Errorf("export = %d %v, %d bytes", r.status, r.header, len(r.text))
	}
	if _, err := format.Open(t.Context(), strings.NewReader(r.text), int64(len(r.text))); err != nil {
		t.Errorf("export is %v", err)
	}
	s.call(t, "GET", "/native/v1/templates/large:v1/export?memory=true", nil).wants(t, "export of memory that there is not", 409, "no saved memory")
	s.callAs(t, s.other, "GET", "/native/v1/templates/default%2Flarge:v1/export", nil).wants(t, "export of another team's", 404, "")
	s.call(t, "POST", "/v3/templates", strings.Repeat(" ", api.MaxBody+1)+"{}").wants(t, "another large request", 413, "")
}
