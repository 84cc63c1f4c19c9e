package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/image"
)

func open(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *image.Store, body string) image.Rootfs {
	t.Helper()
	r, err := s.Put(t.Context(), func(f *os.File) error {
		_, err := f.WriteString(body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func names(t *testing.T, s *image.Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			out = append(out, e.Name())
		}
	}
	return out
}

func age(t *testing.T, r image.Rootfs) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(r.Path, old, old); err != nil {
		t.Fatal(err)
	}
}

func TestPutGetList(t *testing.T) {
	t.Parallel()
	s := open(t)
	a := put(t, s, "a")
	want := image.Rootfs{
		Digest:    "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
		Path:      filepath.Join(s.Dir(), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb.erofs"),
		SizeBytes: 1,
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("Put (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(a, put(t, s, "a")); diff != "" {
		t.Errorf("second Put (-want +got):\n%s", diff)
	}
	b := put(t, s, "bb")
	if got, err := s.Get(b.Digest); err != nil || got != b {
		t.Errorf("Get = %v, %v", got, err)
	}
	got, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.Rootfs{b, a}, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	st, err := os.Stat(a.Path)
	if err != nil || st.Mode() != 0o444 {
		t.Errorf("mode = %v, %v", st.Mode(), err)
	}
	if n := len(names(t, s)); n != 2 {
		t.Errorf("files = %v", names(t, s))
	}
}

func TestGetRefuses(t *testing.T) {
	t.Parallel()
	s := open(t)
	zero := strings.Repeat("0", 64)
	for digest, is := range map[string]func(error) bool{
		"sha256:" + zero:                 errdefs.IsNotFound,
		"":                               errdefs.IsInvalidArgument,
		zero:                             errdefs.IsInvalidArgument,
		"sha256:../" + zero[:61]:         errdefs.IsInvalidArgument,
		"sha256:" + zero[:63] + "F":      errdefs.IsInvalidArgument,
		"md5:" + zero:                    errdefs.IsInvalidArgument,
		"sha256:" + zero + "0":           errdefs.IsInvalidArgument,
		"sha256:" + zero[:63] + "\x00":   errdefs.IsInvalidArgument,
		"sha256:" + zero[:60] + "/../..": errdefs.IsInvalidArgument,
	} {
		if _, err := s.Get(digest); !is(err) {
			t.Errorf("Get(%q) = %v", digest, err)
		}
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	boom := errors.New("boom")
	_, err := s.Put(t.Context(), func(f *os.File) error {
		f.WriteString("half")
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("Put = %v, want boom", err)
	}
	_, err = s.Put(t.Context(), func(*os.File) error {
		return fmt.Errorf("write image: %w", syscall.ENOSPC)
	})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), s.Dir()) || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("Put on a full disk = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err = s.Put(ctx, func(*os.File) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Put = %v", err)
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestCheckSpace(t *testing.T) {
	t.Parallel()
	s := open(t)
	if err := s.CheckSpace(1); err != nil {
		t.Error(err)
	}
	err := s.CheckSpace(1 << 60)
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), s.Dir()) || !strings.Contains(err.Error(), "1099511627776 MiB") {
		t.Errorf("CheckSpace = %v", err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := open(t)
	r := put(t, s, "good")
	if err := s.Verify(t.Context(), r.Digest); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(r.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Path, []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), r.Digest); !errdefs.IsDataLoss(err) {
		t.Errorf("Verify of a changed image = %v", err)
	}
}

func TestNotes(t *testing.T) {
	t.Parallel()
	s := open(t)
	r := put(t, s, "x")
	if _, err := s.Notes(r.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("Notes before = %v", err)
	}
	for _, want := range []string{`{"a":1}`, `{"a":2}`} {
		if err := s.SetNotes(r.Digest, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Notes(r.Digest); err != nil || string(got) != want {
			t.Errorf("Notes = %q, %v", got, err)
		}
	}
	if err := s.SetNotes("sha256:"+strings.Repeat("0", 64), nil); !errdefs.IsNotFound(err) {
		t.Errorf("SetNotes of nothing = %v", err)
	}
	if err := s.SetNotes(r.Digest, make([]byte, 5<<20)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("SetNotes of 5 MiB = %v", err)
	}
	if got := names(t, s); len(got) != 2 {
		t.Errorf("files = %v", got)
	}
}

func TestGC(t *testing.T) {
	t.Parallel()
	s := open(t)
	kept, fresh, gone := put(t, s, "kept"), put(t, s, "fresh"), put(t, s, "gone")
	age(t, kept)
	age(t, gone)
	if err := s.SetNotes(gone.Digest, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(s.Dir(), strings.Repeat("0", 64)+".json")
	stale := filepath.Join(s.Dir(), ".tmp-123")
	foreign := filepath.Join(s.Dir(), "README")
	for _, p := range []string{orphan, stale, foreign} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A Put under way keeps its temporary file.
	inside, finish := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Put(t.Context(), func(f *os.File) error {
			close(inside)
			<-finish
			_, err := f.WriteString("late")
			return err
		})
		if err != nil {
			t.Errorf("Put during GC: %v", err)
		}
	})
	<-inside
	got, err := s.GC(t.Context(), []string{kept.Digest}, time.Minute)
	close(finish)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	want := image.Collected{Images: []image.Rootfs{gone}, TempFiles: 1, FreedBytes: 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("GC (-want +got):\n%s", diff)
	}
	left := names(t, s)
	if len(left) != 4 {
		t.Errorf("left = %v, want kept, fresh, late and the foreign file", left)
	}
	if _, err := s.Get(fresh.Digest); err != nil {
		t.Error(err)
	}
	if _, err := s.GC(t.Context(), []string{"nonsense"}, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("GC with a bad digest = %v", err)
	}
}

// TestPutRenewsAge: an image put again is as safe from GC as a new one.
func TestPutRenewsAge(t *testing.T) {
	t.Parallel()
	s := open(t)
	age(t, put(t, s, "x"))
	r := put(t, s, "x")
	if _, err := s.GC(t.Context(), nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(r.Digest); err != nil {
		t.Error(err)
	}
}

const childEnv = "CAISSON_IMAGE_TEST_DIR"

// TestProcesses puts the same and different images from several processes while
// this one collects.
func TestProcesses(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(childEnv); dir != "" {
		s, err := image.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			r := put(t, s, fmt.Sprint("image ", i))
			if err := s.SetNotes(r.Digest, []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	s := open(t)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcesses$")
			cmd.Env = append(os.Environ(), childEnv+"="+s.Dir())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("child: %v\n%s", err, out)
			}
		})
	}
	var gc sync.WaitGroup
	gc.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.GC(t.Context(), nil, time.Hour); err != nil {
				t.Errorf("GC: %v", err)
			}
		}
	})
	wg.Wait()
	close(done)
	gc.Wait()
	all, err := s.List()
	if err != nil || len(all) != 30 {
		t.Errorf("List = %d images, %v; want 30", len(all), err)
	}
	for _, r := range all {
		if err := s.Verify(t.Context(), r.Digest); err != nil {
			t.Error(err)
		}
	}
	if got := names(t, s); len(got) != 60 {
		t.Errorf("%d files, want 60: %v", len(got), got)
	}
}
