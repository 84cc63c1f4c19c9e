package upload_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template/upload"
	"github.com/containerd/errdefs"
)

var (
	one = strings.Repeat("1", 64)
	two = strings.Repeat("2", 64)
)

func files(t *testing.T, space int64) (*upload.Files, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "uploads")
	f, err := upload.Open(dir, upload.Limits{Space: space})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, dir
}

func TestPutAndOpen(t *testing.T) {
	t.Parallel()
	f, _ := files(t, 0)
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	io.WriteString(gz, "archive")
	gz.Close()
	for hash, body := range map[string]string{one: zipped.String(), two: "archive"} {
		if ok, err := f.Has("t1", hash); ok || err != nil {
			t.Errorf("Has() before = %v, %v", ok, err)
		}
		if err := f.Put(t.Context(), "t1", hash, strings.NewReader(body), int64(len(body))); err != nil {
			t.Fatalf("Put() = %v", err)
		}
		if ok, err := f.Has("t1", hash); !ok || err != nil {
			t.Errorf("Has() after = %v, %v", ok, err)
		}
		if ok, err := f.Has("t2", hash); ok || err != nil {
			t.Errorf("Has() of another team = %v, %v", ok, err)
		}
		r, err := f.Open("t1", hash)
		if err != nil {
			t.Fatalf("Open() = %v", err)
		}
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatalf("Open() is not gzipped: %v", err)
		}
		if got, err := io.ReadAll(z); string(got) != "archive" || err != nil {
			t.Errorf("Open() = %q, %v", got, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	}
	// One that is left unread ends as well.
	r, err := f.Open("t1", two)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close() unread = %v", err)
	}
	if _, err := f.Open("t2", one); !errdefs.IsNotFound(err) {
		t.Errorf("Open() of another team = %v, want not found", err)
	}
}

func TestPutRefuses(t *testing.T) {
	t.Parallel()
	f, dir := files(t, 10)
	for name, c := range map[string]struct {
		team, hash, body string
		size             int64
		is               func(error) bool
	}{
		"short":     {"t1", one, "abc", 4, errdefs.IsInvalidArgument},
		"long":      {"t1", one, "abcde", 4, errdefs.IsInvalidArgument},
		"hash":      {"t1", "../" + one[3:], "abc", 3, errdefs.IsInvalidArgument},
		"team":      {"../t1", one, "abc", 3, errdefs.IsInvalidArgument},
		"no length": {"t1", one, "abc", -1, errdefs.IsInvalidArgument},
		"no room":   {"t1", one, "01234567890", 11, errdefs.IsResourceExhausted},
	} {
		if err := f.Put(t.Context(), "t1", two, strings.NewReader(""), 0); err != nil {
			t.Fatal(err)
		}
		err := f.Put(t.Context(), identity.TeamID(c.team), c.hash, strings.NewReader(c.body), c.size)
		if !c.is(err) {
			t.Errorf("%s: Put() = %v", name, err)
		}
		if ok, _ := f.Has("t1", one); ok {
			t.Errorf("%s: is there after it was refused", name)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "t1"))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files are left, %v, want that of the other hash", len(left), err)
	}
	// Nothing stays reserved.
	if err := f.Put(t.Context(), "t1", one, strings.NewReader("0123456789"), 10); err != nil {
		t.Errorf("Put() of all that is free = %v", err)
	}
}

func TestSpaceIsTakenFromWhatIsOld(t *testing.T) {
	t.Parallel()
	f, dir := files(t, 10)
	for _, h := range []string{one, two} {
		if err := f.Put(t.Context(), "t1", h, strings.NewReader("01234"), 5); err != nil {
			t.Fatal(err)
		}
	}
	three := strings.Repeat("3", 64)
	if err := f.Put(t.Context(), "t1", three, strings.NewReader("x"), 1); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Put() with all in use = %v, want resource exhausted", err)
	}
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "t1", one), old, old); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(t.Context(), "t1", three, strings.NewReader("x"), 1); err != nil {
		t.Errorf("Put() with an old file = %v", err)
	}
	for h, want := range map[string]bool{one: false, two: true, three: true} {
		if got, err := f.Has("t1", h); got != want || err != nil {
			t.Errorf("Has(%.1s) = %v, %v, want %v", h, got, err, want)
		}
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	f, dir := files(t, 0)
	for _, h := range []string{one, two} {
		if err := f.Put(t.Context(), "t1", h, strings.NewReader("01234"), 5); err != nil {
			t.Fatal(err)
		}
	}
	rubbish := filepath.Join(dir, "t1", ".tmp-x")
	if err := os.WriteFile(rubbish, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	for _, p := range []string{rubbish, filepath.Join(dir, "t1", one)} {
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sweep(time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "t1"))
	if err != nil || len(left) != 1 || left[0].Name() != two {
		t.Errorf("Sweep() left %v, %v, want the young file", left, err)
	}
}
