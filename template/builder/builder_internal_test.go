package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

func TestExpand(t *testing.T) {
	t.Parallel()
	env := map[string]string{"A": "one", "B_2": "two", "EMPTY": ""}
	for value, want := range map[string]string{
		"plain": "plain", "$A": "one", "${A}x": "onex", "$A$B_2": "onetwo", "$Ax": "", "$EMPTY-": "-", "$NONE.": ".",
		`\$A`: "$A", "$": "$", "a$": "a$", "$1": "$1", "$(id)": "$(id)", "`id`": "`id`", "${A": "${A", "${A-x}": "${A-x}", "$$A": "$one",
		"é$A": "éone",
	} {
		if got, ok := expand(value, env); got != want || !ok {
			t.Errorf("expand(%q) = %q, %t, want %q", value, got, ok, want)
		}
	}
}

func TestExpandIsBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxEnv/4)
	env := map[string]string{"LONG": long}
	if got, ok := expand("$LONG$LONG$LONG$LONG", env); !ok || len(got) != maxEnv {
		t.Errorf("expand() to the limit = %d bytes, %t", len(got), ok)
	}
	for name, value := range map[string]string{
		"five":      strings.Repeat("$LONG", 5),
		"very many": strings.Repeat("$LONG", 50_000), // 3 GiB
		"plain":     strings.Repeat("x", maxEnv+1),
		// These take long to look at more than once.
		"long name": strings.Repeat("x", maxEnv) + "$" + strings.Repeat("A", maxEnv),
		"open":      strings.Repeat("${", maxEnv) + "}",
	} {
		if got, ok := expand(value, env); ok {
			t.Errorf("%s: expand() = %d bytes, want none", name, len(got))
		}
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	layers, err := snapshot.NewLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCache(t.TempDir(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	r := &run{Builder: &Builder{o: Options{Limits: Limits{CacheBytes: 10}}, cache: c, layers: layers}}
	steps := []struct {
		size int64
		want []int // steps whose layers and entries are there
	}{{4, []int{0}}, {6, []int{0, 1}}, {4, []int{1, 2}}, {12, []int{3}}, {12, []int{4}}}
	for i, s := range steps {
		a := &snapshot.Artifact{ID: snapshot.ID(fmt.Sprintf("layer%d", i)), SizeBytes: s.size}
		if _, err := layers.Dir(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		k := key(fmt.Sprintf("%064x", i))
		if err := c.save(k, entry{Layer: a}); err != nil {
			t.Fatal(err)
		}
		if err := r.trim(t.Context(), k, a); err != nil {
			t.Fatalf("trim(%d) = %v", i, err)
		}
		var entries, dirs []int
		for j := range steps {
			if _, ok := c.load(key(fmt.Sprintf("%064x", j))); ok {
				entries = append(entries, j)
			}
			if layers.Has(snapshot.ID(fmt.Sprintf("layer%d", j))) {
				dirs = append(dirs, j)
			}
		}
		if !cmp.Equal(entries, s.want) || !cmp.Equal(dirs, s.want) {
			t.Errorf("after step %d: entries %v and layers %v, want %v", i, entries, dirs, s.want)
		}
	}
}

// An agent that takes a connection and says nothing.
func TestStartCommandEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	x := &box{route: provider.Route{Dial: func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		cancel() // as a build's limit would
		return ours, nil
	}}}
	r := &run{log: newJournal(func(template.LogLine) {}, 1)}
	ended := make(chan error, 1)
	go func() {
		_, err := r.startCommand(ctx, x, state{User: "user"})
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("startCommand() of an agent that does not answer succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Error("startCommand() goes on after its context has ended")
	}
}

func TestAbsolute(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, dir, want string }{
		{"x", "/srv", "/srv/x"},
		{"x/", "/srv", "/srv/x/"},
		{".", "/srv", "/srv/"},
		{"./", "/srv", "/srv/"},
		{"/a/../b", "/srv", "/b"},
		{"../x", "/srv", "/x"},
		{"../../..", "/", "/"},
		{"/", "/srv", "/"},
		{"/a/.", "/", "/a/"},
	} {
		if got := absolute(tt.path, tt.dir); got != tt.want {
			t.Errorf("absolute(%q, %q) = %q, want %q", tt.path, tt.dir, got, tt.want)
		}
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	var got []string
	j := newJournal(func(l template.LogLine) { got = append(got, l.Text) }, 100_000)
	s := &stream{j: j, level: levelInfo}
	for _, part := range []string{"a li", "ne\nanother\n\n", "10%\r20%\r30%\n", "bad \xff byte\n", "nul\x00\n", strings.Repeat("l", maxLine+3) + "\n", "the end"} {
		if n, err := s.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	s.flush()
	want := []string{"a line", "another", "30%", "bad \uFFFD byte", "nul", strings.Repeat("l", maxLine), "lll", "the end"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestJournalEnds(t *testing.T) {
	t.Parallel()
	var got []string
	j := newJournal(func(l template.LogLine) { got = append(got, l.Level+" "+l.Text) }, 10)
	for range 5 {
		j.output(1, levelInfo, "1234")
	}
	j.info(0, "of the build itself")
	want := []string{"info 1234", "info 1234", "warn further output is not logged: the limit is reached", "info of the build itself"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		step template.Step
		want string
	}{
		{template.Step{Type: "RUN", Args: []string{"a\n  b", "root"}}, "RUN a b"},
		{template.Step{Type: "COPY", Args: []string{"src", "dst", "u", "600"}}, "COPY src dst"},
		{template.Step{Type: "ENV", Args: []string{"A", "1", "B", "2"}}, "ENV A=1 B=2"},
		{template.Step{Type: "USER", Args: []string{"me", "true"}}, "USER me"},
		{template.Step{Type: "WORKDIR"}, "WORKDIR"},
	} {
		if got := describe(tt.step); got != tt.want {
			t.Errorf("describe(%v) = %q, want %q", tt.step, got, tt.want)
		}
	}
	if got := describe(template.Step{Type: "RUN", Args: []string{strings.Repeat("é", 500)}}); len(got) > maxTitle+4 || strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("a long one has %d bytes: %q", len(got), got)
	}
}

// TestKeys: whatever changes what a step makes changes its key.
func TestKeys(t *testing.T) {
	t.Parallel()
	base := func(digest, user, workdir, value string) Base {
		return Base{Rootfs: image.Rootfs{Digest: digest}, User: user, Workdir: workdir, Env: map[string]string{"A": value}}
	}
	s := template.Step{Type: "RUN", Args: []string{"x"}, FilesHash: "h"}
	first := baseKey("team", base("d", "u", "/w", "1")).next(s)
	seen := map[key]string{}
	note := func(what string, k key) {
		if other, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		seen[k] = what
	}
	note("the first", first)
	note("another team's", baseKey("other", base("d", "u", "/w", "1")).next(s))
	for i, b := range []Base{base("D", "u", "/w", "1"), base("d", "U", "/w", "1"), base("d", "u", "/W", "1"), base("d", "u", "/w", "2")} {
		note(fmt.Sprint("base ", i), baseKey("team", b).next(s))
	}
	for i, other := range []template.Step{
		{Type: "ENV", Args: s.Args, FilesHash: "h"},
		{Type: "RUN", Args: []string{"y"}, FilesHash: "h"},
		{Type: "RUN", Args: []string{"x", ""}, FilesHash: "h"},
		{Type: "RUN", Args: s.Args, FilesHash: "i"},
	} {
		note(fmt.Sprint("step ", i), baseKey("team", base("d", "u", "/w", "1")).next(other))
	}
	note("the second", first.next(s))
	forced := s
	forced.Force = true
	if k := baseKey("team", base("d", "u", "/w", "1")).next(forced); k != first {
		t.Error("force changes a step's key")
	}
}

func TestRound(t *testing.T) {
	t.Parallel()
	if got := round(1234567*time.Microsecond).String() + " " + round(12345*time.Microsecond).String(); got != "1.2s 12ms" {
		t.Errorf("round = %q", got)
	}
}

// TestBlame: what is the server's own fault is internal, so that its text, with
// paths of the server, is shown to nobody else.
func TestBlame(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err      error
		internal bool
	}{
		{invalid("unknown step type %q", "X"), false},
		{&errStatus{code: 1, text: "exit status 1"}, false},
		{fmt.Errorf("image x: %w", errdefs.ErrNotFound), false},
		{fmt.Errorf("the step took longer: %w", context.DeadlineExceeded), false},
		{&fs.PathError{Op: "open", Path: "/var/lib/caisson/builds", Err: syscall.EACCES}, true},
		{errors.New("anything"), true},
	} {
		err := at(2, tt.err)
		se, ok := errors.AsType[*template.StepError](err)
		if !ok || se.Step != 2 || errdefs.IsInternal(err) != tt.internal || !errors.Is(err, tt.err) {
			t.Errorf("at(2, %v) = %#v, want it internal: %v", tt.err, err, tt.internal)
		}
		if again := at(3, err); again != err {
			t.Errorf("at(3, %v) = %v", err, again)
		}
	}
}

// writer is a box that has written much.
type writer struct {
	provider.Box
	bytes int64
	saved bool
}

func (w *writer) Stats(context.Context) (provider.Stats, error) {
	return provider.Stats{DiskBytes: w.bytes}, nil
}

func (w *writer) Snapshot(context.Context, snapshot.Kind, snapshot.Vault) (snapshot.Artifact, error) {
	w.saved = true
	return snapshot.Artifact{ID: "a"}, nil
}

// A layer that the disk has no room for is not begun: what fills the disk hits
// everybody.
func TestSaveLayerAsksForSpace(t *testing.T) {
	t.Parallel()
	r := &run{Builder: &Builder{o: Options{Dir: t.TempDir()}}}
	large := &writer{bytes: 1 << 60}
	if _, err := r.saveLayer(t.Context(), &box{box: large}); !errdefs.IsResourceExhausted(err) || large.saved {
		t.Errorf("saveLayer() = %v, saved %t", err, large.saved)
	}
	small := &writer{bytes: 1}
	if _, err := r.saveLayer(t.Context(), &box{box: small}); err != nil || !small.saved {
		t.Errorf("saveLayer() of little = %v, saved %t", err, small.saved)
	}
}
