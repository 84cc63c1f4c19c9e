package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// saveAs makes a snapshot and returns its id.
func saveAs(t *testing.T, s *testenv.Server, id, name string) string {
	t.Helper()
	var out struct {
		SnapshotID string
		Names      []string
	}
	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+id+"/snapshots", map[string]any{"name": name}, &out); err != nil {
		t.Fatalf("snapshot %q: %v", name, err)
	}
	return out.SnapshotID
}

type forked struct {
	Sandbox *testenv.Box
	Error   *struct {
		Code    int
		Message string
	}
}

func fork(t *testing.T, s *testenv.Server, id string, count int) []testenv.Box {
	t.Helper()
	var out []forked
	err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+id+"/fork", map[string]any{"count": count, "timeout": 300}, &out)
	if err != nil || len(out) != count {
		t.Fatalf("fork: %d results, %v", len(out), err)
	}
	var children []testenv.Box
	for _, f := range out {
		if f.Sandbox == nil {
			t.Fatalf("child: %+v", f.Error)
		}
		children = append(children, *f.Sandbox)
		t.Cleanup(func() {
			_ = s.API(context.WithoutCancel(t.Context()), http.MethodDelete, "/sandboxes/"+f.Sandbox.ID, nil, nil)
		})
	}
	return children
}

// artifacts counts what a server's vault holds beside what it began with, which
// is the memory of stock templates.
func artifacts(t *testing.T, s *testenv.Server) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Data, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	return len(slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		_, err := os.Stat(filepath.Join(given(), "snapshots", e.Name()))
		return err == nil
	}))
}

// inVault names a file of a server's vault that holds text, or "".
func inVault(t *testing.T, s *testenv.Server, text string) (found string) {
	t.Helper()
	root := filepath.Join(s.Data, "snapshots")
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // other tests delete theirs
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		if err == nil && bytes.Contains(b, []byte(text)) {
			found = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A sandbox that is made of a snapshot goes on where its source stood, with an
// identity and a policy of its own; the source notices nothing.
func TestSnapshotGoesOn(t *testing.T) {
	t.Parallel()
	src := create(t, shared, map[string]any{
		"envVars": map[string]string{"KEPT": "source", "OVER": "source", "SECRET": "of the source"},
		"network": map[string]any{"allowOut": []string{"allowed.test"}},
	})
	pid := sh(t, shared, src, "echo kept > /home/user/f; echo kept > /tmp/f; "+counting).Stdout
	id := saveAs(t, shared, src.ID, "")
	t.Cleanup(func() {
		_ = shared.API(context.WithoutCancel(t.Context()), http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil)
	})
	if got := sh(t, shared, src, "echo $KEPT; "+grows(pid)); got.Stdout != "source\ncounts\n" {
		t.Errorf("the source after its snapshot: %+v", got)
	}

	child := create(t, shared, map[string]any{
		"templateID": id, "envVars": map[string]string{"OVER": "child"},
		"network": map[string]any{"allowOut": []string{"other.test"}},
	})
	got := sh(t, shared, child, "cat /home/user/f /tmp/f; echo $KEPT $OVER; hostname; "+grows(pid))
	if want := "kept\nkept\nsource child\n" + child.ID + "\ncounts\n"; got.Stdout != want {
		t.Errorf("the child has %+v, want %q", got, want)
	}
	// They diverge.
	sh(t, shared, child, "echo child > /home/user/f")
	if got := sh(t, shared, src, "cat /home/user/f; hostname"); got.Stdout != "kept\n"+src.ID+"\n" {
		t.Errorf("the source has %q", got.Stdout)
	}
	for name, pair := range map[string][2]testenv.Box{"source": {src, child}, "child": {child, src}} {
		thief := pair[1]
		thief.Token = pair[0].Token
		resp, err := shared.Agent(t.Context(), thief, http.MethodGet, "/files?path=/etc/hostname", "", nil)
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("the token of the %s opens the other: %v, %v", name, resp, err)
		}
	}
	if r := sh(t, shared, child, "curl -sS -m 3 http://allowed.test/ 2>&1 || echo denied"); !strings.Contains(r.Stdout, "denied") {
		t.Errorf("the child has the policy of its source: %q", r.Stdout)
	}
	var detail struct{ Network struct{ AllowOut []string } }
	if err := shared.API(t.Context(), http.MethodGet, "/sandboxes/"+child.ID, nil, &detail); err != nil || fmt.Sprint(detail.Network.AllowOut) != "[other.test]" {
		t.Errorf("network of the child: %+v, %v", detail, err)
	}
	// What is on disk holds no token. Variables live on in the processes that
	// had them.
	if name := inVault(t, shared, src.Token); name != "" {
		t.Errorf("%s holds the token of the source", name)
	}
	// Resources are those of the source.
	err := shared.API(t.Context(), http.MethodPost, "/native/v1/sandboxes", map[string]any{
		"template": id, "timeoutSeconds": 60, "resources": map[string]any{"memoryMiB": 300},
	}, nil)
	if status(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "memoryMiB") {
		t.Errorf("create with other resources: %v", err)
	}
	if err := shared.API(t.Context(), http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil); status(err) != http.StatusBadRequest {
		t.Errorf("delete in use: %v, want 400", err)
	}
}

func TestForkDiverges(t *testing.T) {
	t.Parallel()
	src := create(t, shared, map[string]any{"envVars": map[string]string{"GREETING": "hello"}, "metadata": map[string]string{"of": "source"}})
	pid := sh(t, shared, src, "echo source > /home/user/f; "+counting).Stdout
	children := fork(t, shared, src.ID, 4)
	all := append(children, src)
	var wg sync.WaitGroup
	for _, b := range all {
		wg.Go(func() {
			got := sh(t, shared, b, "cat /home/user/f; echo $GREETING; hostname; echo "+b.ID+" > /home/user/f; "+grows(pid))
			if want := "source\nhello\n" + b.ID + "\ncounts\n"; got.Stdout != want {
				t.Errorf("%s has %+v, want %q", b.ID, got, want)
			}
		})
	}
	wg.Wait()
	random := map[string]bool{}
	for _, b := range all {
		got := sh(t, shared, b, "cat /home/user/f; head -c 16 /dev/urandom | od -An -tx1")
		own, rest, _ := strings.Cut(got.Stdout, "\n")
		if own != b.ID || random[rest] {
			t.Errorf("%s has the file %q; its randomness is another's: %v", b.ID, own, random[rest])
		}
		random[rest] = true
		for _, other := range all {
			thief := b
			if thief.Token = other.Token; other.ID == b.ID {
				continue
			}
			resp, err := shared.Agent(t.Context(), thief, http.MethodGet, "/files?path=/etc/hostname", "", nil)
			if err != nil || resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("the token of %s opens %s: %v, %v", other.ID, b.ID, resp, err)
			}
		}
	}
	var detail struct {
		TemplateID string
		Metadata   map[string]string
	}
	if err := shared.API(t.Context(), http.MethodGet, "/sandboxes/"+children[0].ID, nil, &detail); err != nil || detail.Metadata["of"] != "source" {
		t.Errorf("a child is %+v (%v)", detail, err)
	}
	err := shared.API(t.Context(), http.MethodPost, "/sandboxes/"+src.ID+"/pause", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = shared.API(t.Context(), http.MethodPost, "/sandboxes/"+src.ID+"/fork", map[string]any{"count": 1}, nil)
	if status(err) != http.StatusConflict {
		t.Errorf("fork of a paused sandbox: %v, want 409", err)
	}
}

// Requests that come while a sandbox is saved are answered, streams go on.
func TestSourceIsUsedMeanwhile(t *testing.T) {
	t.Parallel()
	src := create(t, shared, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if r := sh(t, shared, src, "echo here"); r.Stdout != "here\n" {
					t.Errorf("meanwhile: %+v", r)
				}
			}
		})
	}
	long := make(chan testenv.Result, 1)
	go func() { long <- sh(t, shared, src, "for i in 1 2 3 4; do sleep 0.5; echo $i; done") }()
	var ids []string
	for range 6 {
		ids = append(ids, saveAs(t, shared, src.ID, ""))
	}
	if r := <-long; r.Stdout != "1\n2\n3\n4\n" {
		t.Errorf("a stream over snapshots got %+v", r)
	}
	close(stop)
	wg.Wait()
	for _, id := range ids {
		if err := shared.API(t.Context(), http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil); err != nil {
			t.Error(err)
		}
	}
}

// kill -9 of the server while snapshots and forks are made loses no sandbox,
// leaves every listed snapshot usable and nothing else in the vault.
func TestServerDiesWhileSaving(t *testing.T) {
	t.Parallel()
	s := own(t)
	src := create(t, s, map[string]any{"envVars": map[string]string{"GREETING": "hello"}, "timeout": 600})
	pid := sh(t, s, src, counting).Stdout
	for round, after := range []time.Duration{5, 20, 40, 80} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.API(context.WithoutCancel(t.Context()), http.MethodPost, "/sandboxes/"+src.ID+"/snapshots", map[string]any{}, nil)
			_ = s.API(context.WithoutCancel(t.Context()), http.MethodPost, "/sandboxes/"+src.ID+"/fork", map[string]any{"count": 2, "timeout": 600}, nil)
		}()
		time.Sleep(after * time.Millisecond)
		s.Kill9()
		<-done
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := sh(t, s, src, "echo $GREETING; "+grows(pid)); got.Stdout != "hello\ncounts\n" {
			t.Errorf("round %d: the source has %+v", round, got)
		}
	}
	var list []struct{ SnapshotID string }
	if err := s.API(t.Context(), http.MethodGet, "/snapshots", nil, &list); err != nil {
		t.Fatal(err)
	}
	for _, snap := range list {
		child := create(t, s, map[string]any{"templateID": snap.SnapshotID})
		if got := sh(t, s, child, "echo $GREETING; "+grows(pid)); got.Stdout != "hello\ncounts\n" {
			t.Errorf("child of %s has %+v", snap.SnapshotID, got)
		}
	}
	waitFor(t, 10*time.Second, "the vault to hold what is listed", func() bool { return artifacts(t, s) == len(list) })
	if n := boxes(t, s); n < 1+len(list) {
		t.Errorf("%d boxes, want the source and %d children at least", n, len(list))
	}
}

func TestManySnapshots(t *testing.T) {
	t.Parallel()
	s := own(t)
	src := create(t, s, nil)
	const n = 20
	seen := map[string]bool{}
	for i := range n {
		name := ""
		if i%2 == 0 {
			name = fmt.Sprintf("named-%d", i)
		}
		seen[saveAs(t, s, src.ID, name)] = true
	}
	if len(seen) != n || artifacts(t, s) != n {
		t.Errorf("%d snapshots with %d artifacts, want %d", len(seen), artifacts(t, s), n)
	}
	for id := range seen {
		if err := s.API(t.Context(), http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	if left := artifacts(t, s); left != 0 {
		t.Errorf("%d artifacts are left", left)
	}
	if got := sh(t, s, src, "echo alive"); got.Stdout != "alive\n" {
		t.Errorf("the source: %+v", got)
	}
}
