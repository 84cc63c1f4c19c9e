package upload_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
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
		"too large": {"t1", one, "01234567890", 11, func(err error) bool { return errors.Is(err, apierr.ErrTooLarge) }},
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

func limited(t *testing.T, l upload.Limits) *upload.Files {
	t.Helper()
	f, err := upload.Open(filepath.Join(t.TempDir(), "uploads"), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// One team cannot take the space of all.
func TestShareOfATeam(t *testing.T) {
	t.Parallel()
	f := limited(t, upload.Limits{Space: 100, Team: 40})
	put := func(team identity.TeamID, hash string, size int) error {
		return f.Put(t.Context(), team, hash, strings.NewReader(strings.Repeat("x", size)), int64(size))
	}
	if err := put("t1", one, 30); err != nil {
		t.Fatal(err)
	}
	err := put("t1", two, 20)
	if e, ok := errors.AsType[*apierr.Error](err); !errdefs.IsResourceExhausted(err) || !ok || e.Limit != "template.upload_space_per_team" {
		t.Errorf("Put() above the share = %v", err)
	}
	if err := put("t2", one, 40); err != nil {
		t.Errorf("Put() of another team = %v", err)
	}
	if err := put("t3", one, 40); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Put() above all space = %v", err)
	}
	// More than there is ever room for is not to be tried again.
	if err := put("t4", one, 41); !errors.Is(err, apierr.ErrTooLarge) {
		t.Errorf("Put() of more than the share = %v", err)
	}
	// A team's own old files make room for its new ones, and no others do.
	old := time.Now().Add(-7 * time.Hour)
	for _, team := range []string{"t1", "t2"} {
		if err := os.Chtimes(filepath.Join(f.Dir(), team, one), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("t1", two, 20); err != nil {
		t.Errorf("Put() with an old file in the way = %v", err)
	}
	if ok, err := f.Has("t1", one); ok || err != nil {
		t.Errorf("the old file is there: %v, %v", ok, err)
	}
	if ok, err := f.Has("t2", one); !ok || err != nil {
		t.Errorf("another team's old file is gone: %v, %v", ok, err)
	}
}

func TestSpool(t *testing.T) {
	t.Parallel()
	f := limited(t, upload.Limits{Space: 10, Team: 10})
	left := func() (names []string) {
		err := filepath.WalkDir(f.Dir(), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				names = append(names, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	s, err := f.Spool(t.Context(), "t1", strings.NewReader("archive"), 7)
	if err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 7); s.Size != 7 {
		t.Errorf("Size = %d", s.Size)
	} else if _, err := s.ReadAt(b, 0); err != nil || string(b) != "archive" {
		t.Errorf("ReadAt() = %q, %v", b, err)
	}
	if names := left(); len(names) > 0 {
		t.Errorf("a process that dies would leave %v", names)
	}
	// It is counted as long as it is there.
	if err := f.Put(t.Context(), "t1", one, strings.NewReader("1234"), 4); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Put() beside it = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	for name, c := range map[string]struct {
		team identity.TeamID
		body string
		size int64
		is   func(error) bool
	}{
		"short":   {"t1", "abc", 4, errdefs.IsInvalidArgument},
		"long":    {"t1", "abc", 2, errdefs.IsInvalidArgument},
		"unknown": {"t1", "abc", -1, errdefs.IsInvalidArgument},
		"large":   {"t1", "", 11, func(err error) bool { return errors.Is(err, apierr.ErrTooLarge) }},
		"team":    {"../t1", "abc", 3, errdefs.IsInvalidArgument},
	} {
		if s, err := f.Spool(t.Context(), c.team, strings.NewReader(c.body), c.size); !c.is(err) {
			t.Errorf("%s: Spool() = %v, %v", name, s, err)
		}
	}
	if names := left(); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	if err := f.Put(t.Context(), "t1", one, strings.NewReader("0123456789"), 10); err != nil {
		t.Errorf("Put() when all space is free again = %v", err)
	}
}

// What the disk has no room for is refused before it is sent.
func TestDiskIsAsked(t *testing.T) {
	t.Parallel()
	f := limited(t, upload.Limits{})
	sent := false
	_, err := f.Spool(t.Context(), "t1", readerFunc(func([]byte) (int, error) { sent = true; return 0, io.EOF }), 1<<60)
	if !errors.Is(err, syscall.ENOSPC) || sent {
		t.Errorf("Spool() = %v, and something was read: %v", err, sent)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
