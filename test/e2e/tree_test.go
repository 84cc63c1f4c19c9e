package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

type change struct {
	Path, Kind, Patch     string
	Binary, Large         bool
	Insertions, Deletions int
	Before, After         *struct{ Type, Mode, Target string }
}

// compare asks for the difference between two points.
func compare(t *testing.T, s *testenv.Server, from, to string) map[string]change {
	t.Helper()
	var out struct {
		Changes   []change
		Truncated bool
	}
	began := time.Now()
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/diff?"+url.Values{"from": {from}, "to": {to}}.Encode(), nil, &out); err != nil {
		t.Fatalf("diff %q %q: %v", from, to, err)
	}
	t.Logf("diff of %d changes in %s", len(out.Changes), time.Since(began))
	all := map[string]change{}
	for _, c := range out.Changes {
		all[c.Path] = c
	}
	return all
}

func words(all map[string]change) string {
	b, _ := json.Marshal(all) //nolint:errchkjson // plain fields
	return string(b)
}

// deleteLater deletes a snapshot when the test ends.
func deleteLater(t *testing.T, s *testenv.Server, id string) {
	t.Helper()
	t.Cleanup(func() {
		_ = s.API(context.WithoutCancel(t.Context()), http.MethodDelete, "/native/v1/snapshots/"+url.PathEscape(id), nil, nil)
	})
}

// Files are compared between what runs, what is paused in either way, snapshots
// and the template.
func TestDiffPoints(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := create(t, s, nil)
	if got := compare(t, s, "", b.ID); len(got) != 0 {
		t.Errorf("a sandbox in which nothing was done differs from its template: %s", words(got))
	}
	pid := sh(t, s, b, "cd /home/user && printf 'one\\ntwo\\n' > text && mkdir -p dir/sub && echo x > dir/sub/f && ln -s text link && ln text hard; "+counting).Stdout
	snap := saveAs(t, s, b.ID, "point")
	deleteLater(t, s, snap)
	sh(t, s, b, `cd /home/user && printf 'one\n2\n' > text && rm -r dir && mkfifo pipe && head -c 5000 /dev/urandom > random && head -c 3000000 /dev/zero | tr '\0' 'a' > long && chmod 4755 /usr/bin/env && rm /etc/debian_version && ln -sf elsewhere link && touch /etc/hostname`)
	want := func(what string, got map[string]change, home bool) {
		t.Helper()
		for path, check := range map[string]func(c change) bool{
			"home/user/text":     func(c change) bool { return strings.Contains(c.Patch, "\n+2\n") },
			"home/user/pipe":     func(c change) bool { return c.Kind == "added" && c.After.Type == "fifo" },
			"home/user/random":   func(c change) bool { return c.Binary && c.Insertions == 0 },
			"home/user/long":     func(c change) bool { return c.Large && len(c.Patch) < 300 },
			"home/user/link":     func(c change) bool { return c.After.Target == "elsewhere" },
			"usr/bin/env":        func(c change) bool { return c.Kind == "changed" && c.After.Mode == "4755" && !c.Binary },
			"etc/debian_version": func(c change) bool { return c.Kind == "removed" && c.Deletions == 1 },
		} {
			if c, ok := got[path]; !ok || !check(c) {
				t.Errorf("%s: %s is %+v", what, path, c)
			}
		}
		if c, ok := got["home/user/dir/sub/f"]; home != (ok && c.Kind == "removed") {
			t.Errorf("%s: dir/sub/f is %+v", what, c)
		}
	}
	want("snapshot to running", compare(t, s, "point", b.ID), true)
	if got := sh(t, s, b, grows(pid)); got.Stdout != "counts\n" {
		t.Errorf("after a diff the sandbox has %+v", got)
	}
	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	want("template to paused", compare(t, s, "base", b.ID), false)
	connect(t, s, b.ID)
	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", map[string]any{"memory": false}, nil); err != nil {
		t.Fatal(err)
	}
	want("snapshot to paused with its files", compare(t, s, "point", b.ID), true)
	back := compare(t, s, b.ID, "point")
	if c := back["etc/debian_version"]; c.Kind != "added" {
		t.Errorf("the other way round %+v", c)
	}
	for _, bad := range []string{"inone", "none:at-all", "../etc"} {
		err := s.API(t.Context(), http.MethodGet, "/native/v1/diff?to="+url.QueryEscape(bad), nil, nil)
		if status(err) != http.StatusNotFound {
			t.Errorf("diff of %q: %v, want 404", bad, err)
		}
	}
	waitFor(t, 10*time.Second, "the copies to be gone", func() bool { return boxes(t, s) == 0 })
	if n := artifacts(t, s); n != 2 {
		t.Errorf("%d artifacts, want those of the snapshot and the paused sandbox", n)
	}
}

// A file that is larger than the memory of its sandbox is compared like any
// other, whether it runs or is paused.
func TestDiffOfALargeFile(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := createNative(t, s, map[string]any{"memoryMiB": 128, "diskMiB": 2048})
	sh(t, s, b, "head -c 200000000 /dev/urandom > /home/user/large; truncate -s 1500M /home/user/sparse")
	for _, state := range []string{"running", "paused"} {
		got := compare(t, s, "", b.ID)
		if len(got) != 2 || !got["home/user/large"].Large || !got["home/user/sparse"].Large {
			t.Errorf("%s: changes are %s", state, words(got))
		}
		if state == "running" {
			if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	connect(t, s, b.ID)
	if got := sh(t, s, b, "wc -c < /home/user/large"); got.Stdout != "200000000\n" {
		t.Errorf("the sandbox has %+v", got)
	}
	waitFor(t, 10*time.Second, "the copies to be gone", func() bool { return boxes(t, s) == 1 })
}

// A sandbox goes back to where it was saved, under its id.
func TestRollbackInPlace(t *testing.T) {
	t.Parallel()
	s := own(t)
	b := create(t, s, map[string]any{"envVars": map[string]string{"GREETING": "hello"}, "timeout": 600})
	pid := sh(t, s, b, "echo before > /home/user/f; echo before > /tmp/f; "+counting).Stdout
	var before, after struct{ EndAt string }
	if err := s.API(t.Context(), http.MethodGet, "/sandboxes/"+b.ID, nil, &before); err != nil {
		t.Fatal(err)
	}
	deleteLater(t, s, saveAs(t, s, b.ID, "point"))
	for range 3 {
		sh(t, s, b, "echo after > /home/user/f; rm /tmp/f; kill "+strings.TrimSpace(pid))
		began := time.Now()
		if err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes/"+b.ID+"/rollback", map[string]any{"snapshot": "point"}, nil); err != nil {
			t.Fatalf("rollback: %v", err)
		}
		t.Logf("rollback in %s", time.Since(began))
		got := sh(t, s, b, "cat /home/user/f /tmp/f; echo $GREETING; hostname; "+grows(pid))
		if want := "before\nbefore\nhello\n" + b.ID + "\ncounts\n"; got.Stdout != want {
			t.Errorf("after the rollback %+v, want %q", got, want)
		}
	}
	if err := s.API(t.Context(), http.MethodGet, "/sandboxes/"+b.ID, nil, &after); err != nil || after != before {
		t.Errorf("it ends at %s (%v), before at %s", after.EndAt, err, before.EndAt)
	}
	// One that is damaged leaves it as it is.
	sh(t, s, b, "echo kept > /home/user/f")
	damage(t, s)
	err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes/"+b.ID+"/rollback", map[string]any{"snapshot": "point"}, nil)
	if err == nil {
		t.Error("rollback to a damaged snapshot succeeds")
	}
	if got := sh(t, s, b, "cat /home/user/f; "+grows(pid)); got.Stdout != "kept\ncounts\n" {
		t.Errorf("after a rollback that failed %+v", got)
	}
	if boxes(t, s) != 1 || artifacts(t, s) != 1 {
		t.Errorf("%d boxes and %d artifacts, want one each", boxes(t, s), artifacts(t, s))
	}
}

// A fork takes the place of its source.
func TestPromoteFork(t *testing.T) {
	t.Parallel()
	s := own(t)
	src := create(t, s, nil)
	pid := sh(t, s, src, "echo source > /home/user/f; "+counting).Stdout
	kids := fork(t, s, src.ID, 2)
	sh(t, s, kids[0], "echo winner > /home/user/f")
	sh(t, s, kids[1], "echo loser > /home/user/f")
	if err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes/"+kids[0].ID+"/promote", nil, nil); err != nil {
		t.Fatalf("promote: %v", err)
	}
	if got := sh(t, s, src, "cat /home/user/f; hostname; "+grows(pid)); got.Stdout != "winner\n"+src.ID+"\ncounts\n" {
		t.Errorf("the source has %+v", got)
	}
	if got := sh(t, s, kids[1], "cat /home/user/f"); got.Stdout != "loser\n" {
		t.Errorf("the other fork has %+v", got)
	}
	if n := ended(t, s, kids[0].ID, 5*time.Second); n.Reason != "promoted" {
		t.Errorf("the fork ended for %q", n.Reason)
	}
	if err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes/"+src.ID+"/promote", nil, nil); status(err) != http.StatusConflict {
		t.Errorf("promote of what is no fork: %v, want 409", err)
	}
	if n := artifacts(t, s); n != 0 {
		t.Errorf("%d artifacts are left", n)
	}
}

// A quota refuses one snapshot too many; moving a tag needs no place.
func TestSnapshotQuota(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "limits.snapshots_per_team=2")
	b := create(t, s, nil)
	pid := sh(t, s, b, counting).Stdout
	saveAs(t, s, b.ID, "one")
	saveAs(t, s, b.ID, "two")
	err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/snapshots", map[string]any{"name": "three"}, nil)
	if status(err) != http.StatusTooManyRequests || !strings.Contains(fmt.Sprint(err), "snapshots_per_team") {
		t.Errorf("a third snapshot: %v, want 429 that names the limit", err)
	}
	saveAs(t, s, b.ID, "two")
	if got := sh(t, s, b, grows(pid)); got.Stdout != "counts\n" || artifacts(t, s) != 2 {
		t.Errorf("the sandbox has %+v, the vault %d artifacts", got, artifacts(t, s))
	}
}
