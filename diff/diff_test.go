package diff_test

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/diff"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/containerd/errdefs"
)

// base is an image with these files.
func base(t *testing.T, files ...erofs.File) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Build(f, files); err != nil {
		t.Fatal(err)
	}
	return path
}

func file(path, text string) erofs.File {
	return erofs.File{Path: path, Mode: 0o644, Data: []byte(text)}
}

// item is one entry of a layer.
type item struct {
	tar.Header
	body string
}

func reg(name, body string) item {
	return item{tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body}
}

func dir(name string) item {
	return item{tar.Header{Name: "./" + name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func opaque(name string) item {
	d := dir(name)
	d.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}
	return d
}

func gone(name string) item {
	return item{tar.Header{Name: "./" + name, Typeflag: tar.TypeChar}, ""}
}

func link(name, to string, kind byte) item {
	return item{tar.Header{Name: "./" + name, Typeflag: kind, Linkname: to, Mode: 0o777}, ""}
}

func layer(t *testing.T, items ...item) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	w := tar.NewWriter(f)
	for _, i := range items {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(i.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

// summary is a report, a line for each change.
func summary(r diff.Report) []string {
	var out []string
	for _, c := range r.Changes {
		kind := ""
		switch {
		case c.Before == nil:
			kind = c.After.Type
		case c.After == nil || c.Before.Type == c.After.Type:
			kind = c.Before.Type
		default:
			kind = c.Before.Type + ">" + c.After.Type
		}
		out = append(out, fmt.Sprintf("%s %s %s +%d-%d", c.Kind, kind, c.Path, c.Insertions, c.Deletions))
	}
	return out
}

var ground = []erofs.File{
	file("etc/hosts", "one\ntwo\nthree\n"), file("etc/same", "same\n"),
	file("opt/tool/a", "a\n"), file("opt/tool/b", "b\n"), file("opt/was", "file\n"),
	{Path: "opt/link", Mode: fs.ModeSymlink | 0o777, Target: "tool"},
	file("srv/whole/x", "x\n"),
}

func TestCompareLayers(t *testing.T) {
	t.Parallel()
	image := base(t, ground...)
	for name, c := range map[string]struct {
		a, b []item
		want []string
	}{
		"nothing": {nil, nil, nil},
		"edit": {nil, []item{dir("etc"), reg("etc/hosts", "one\n2\nthree\n")}, []string{
			"changed file etc/hosts +1-1",
		}},
		"copied up and the same": {nil, []item{dir("etc"), reg("etc/hosts", "one\ntwo\nthree\n")}, nil},
		"added in a new directory": {nil, []item{opaque("new"), reg("new/f", "f\n")}, []string{
			"added directory new +0-0", "added file new/f +1-0",
		}},
		"directory removed": {nil, []item{dir("opt"), gone("opt/tool")}, []string{
			"removed directory opt/tool +0-0", "removed file opt/tool/a +0-1", "removed file opt/tool/b +0-1",
		}},
		"directory made anew": {nil, []item{dir("opt"), opaque("opt/tool"), reg("opt/tool/b", "b\n")}, []string{
			"removed file opt/tool/a +0-1",
		}},
		"back again": {[]item{dir("opt"), gone("opt/tool")}, nil, []string{
			"added directory opt/tool +0-0", "added file opt/tool/a +1-0", "added file opt/tool/b +1-0",
		}},
		"file to link, link to directory": {nil, []item{dir("opt"), link("opt/was", "tool/a", tar.TypeSymlink), opaque("opt/link"), reg("opt/link/f", "f\n")}, []string{
			"changed symlink>directory opt/link +0-1", "added file opt/link/f +1-0", "changed file>symlink opt/was +1-1",
		}},
		"hard link": {nil, []item{reg("first", "text\n"), link("second", "./first", tar.TypeLink)}, []string{
			"added file first +1-0", "added file second +1-0",
		}},
		"special files": {nil, []item{{tar.Header{Name: "./pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""}, {tar.Header{Name: "./dev", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 1}, ""}}, []string{
			"added block dev +0-0", "added fifo pipe +0-0",
		}},
		"between layers": {
			[]item{dir("srv"), reg("srv/f", "1\n"), reg("only-a", "")},
			[]item{dir("srv"), reg("srv/f", "1\n2\n"), gone("srv/whole")},
			[]string{"removed file only-a +0-0", "changed file srv/f +1-0", "removed directory srv/whole +0-0", "removed file srv/whole/x +0-1"},
		},
		"mode": {nil, []item{dir("etc"), {tar.Header{Name: "./etc/hosts", Typeflag: tar.TypeReg, Mode: 0o755, Size: 14}, "one\ntwo\nthree\n"}}, []string{
			"changed file etc/hosts +0-0",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := diff.Point{Image: image, Digest: "same"}, diff.Point{Image: image, Digest: "same"}
			if c.a != nil {
				a.Layer = layer(t, append([]item{dir("")}, c.a...)...)
			}
			if c.b != nil {
				b.Layer = layer(t, append([]item{dir("")}, c.b...)...)
			}
			r, err := diff.Compare(t.Context(), a, b, diff.Options{})
			if err != nil {
				t.Fatalf("Compare() = %v", err)
			}
			if d := cmp.Diff(c.want, summary(r)); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}

// What is said to be no change is none, and the rest of such a file is one.
func TestIgnored(t *testing.T) {
	t.Parallel()
	image := base(t, ground...)
	o := diff.Options{Ignore: []string{"srv"}, Begin: "# begin\n", End: "# end\n"}
	block := "one\ntwo\nthree\n# begin\nours\n# end\n"
	for name, c := range map[string]struct {
		items []item
		want  []string
	}{
		"path":           {[]item{dir("srv"), reg("srv/f", "f\n")}, nil},
		"block":          {[]item{dir("etc"), reg("etc/hosts", block)}, nil},
		"block and more": {[]item{dir("etc"), reg("etc/hosts", "zero\n"+block)}, []string{"changed file etc/hosts +4-0"}},
		"no end":         {[]item{dir("etc"), reg("etc/hosts", "one\ntwo\nthree\n# begin\n")}, []string{"changed file etc/hosts +1-0"}},
		"elsewhere":      {[]item{dir("opt"), reg("opt/was", "file\n# begin\n# end\n")}, []string{"changed file opt/was +2-0"}},
	} {
		r, err := diff.Compare(t.Context(), diff.Point{Image: image, Digest: "d"},
			diff.Point{Image: image, Digest: "d", Layer: layer(t, append([]item{dir("")}, c.items...)...)}, o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, summary(r)); d != "" {
			t.Errorf("%s: changes (-want +got):\n%s", name, d)
		}
	}
}

func TestCompareImages(t *testing.T) {
	t.Parallel()
	other := slices.Clone(ground)
	other[0] = file("etc/hosts", "one\ntwo\nfour\n")
	a, b := base(t, ground...), base(t, append(other, file("usr/new", "n\n"))...)
	r, err := diff.Compare(t.Context(), diff.Point{Image: a, Digest: "a"}, diff.Point{Image: b, Digest: "b"}, diff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"changed file etc/hosts +1-1", "added directory usr +0-0", "added file usr/new +1-0"}
	if d := cmp.Diff(want, summary(r)); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

// The patch is what git and patch understand: applied to the one tree it gives
// the other.
func TestPatchApplies(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed: the patch cannot be applied")
	}
	image := base(t, ground...)
	changed := layer(t, dir(""), dir("etc"), reg("etc/hosts", "zero\none\nthree"), reg("etc/with \"quotes\" and\ttab", "x\n"),
		dir("opt"), gone("opt/tool"), link("opt/was", "tool/a", tar.TypeSymlink), reg("new", "1\n2\n"), reg("empty", ""))
	r, err := diff.Compare(t.Context(), diff.Point{Image: image, Digest: "d"}, diff.Point{Image: image, Digest: "d", Layer: changed}, diff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var patch strings.Builder
	for _, c := range r.Changes {
		patch.WriteString(c.Patch)
	}
	tree := t.TempDir()
	for _, f := range ground {
		path := filepath.Join(tree, f.Path)
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		if f.Target != "" {
			err = os.Symlink(f.Target, path)
		} else {
			err = os.WriteFile(path, f.Data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "git", "apply", "-p1", "-")
	cmd.Dir, cmd.Stdin = tree, strings.NewReader(patch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git apply: %v: %s\n%s", err, out, patch.String())
	}
	for name, want := range map[string]string{"etc/hosts": "zero\none\nthree", "etc/with \"quotes\" and\ttab": "x\n", "new": "1\n2\n", "empty": "", "etc/same": "same\n"} {
		if got, err := os.ReadFile(filepath.Join(tree, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	if to, err := os.Readlink(filepath.Join(tree, "opt/was")); err != nil || to != "tool/a" {
		t.Errorf("opt/was is a link to %q (%v)", to, err)
	}
	if _, err := os.Stat(filepath.Join(tree, "opt/tool/a")); !os.IsNotExist(err) {
		t.Errorf("opt/tool/a is there (%v)", err)
	}
}

// Random edits, each applied by git.
func TestRandomText(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed: the patch cannot be applied")
	}
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		var out strings.Builder
		for range rng.IntN(n) {
			fmt.Fprintln(&out, rng.IntN(6))
		}
		return strings.TrimSuffix(out.String(), strings.Repeat("\n", rng.IntN(2)))
	}
	for range 40 {
		old, now := text(40), text(40)
		if old == now {
			continue
		}
		image := base(t, file("f", old))
		r, err := diff.Compare(t.Context(), diff.Point{Image: image, Digest: "d"},
			diff.Point{Image: image, Digest: "d", Layer: layer(t, dir(""), reg("f", now))}, diff.Options{})
		if err != nil || len(r.Changes) != 1 {
			t.Fatalf("Compare() = %+v, %v", r, err)
		}
		tree := t.TempDir()
		if err := os.WriteFile(filepath.Join(tree, "f"), []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "git", "apply", "-p1", "-")
		cmd.Dir, cmd.Stdin = tree, strings.NewReader(r.Changes[0].Patch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git apply: %v: %s\n%s\nold %q\nnew %q", err, out, r.Changes[0].Patch, old, now)
		}
		if got, _ := os.ReadFile(filepath.Join(tree, "f")); string(got) != now {
			t.Fatalf("after the patch %q, want %q", got, now)
		}
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	image := base(t, ground...)
	at := func(items ...item) diff.Point {
		return diff.Point{Image: image, Digest: "d", Layer: layer(t, append([]item{dir("")}, items...)...)}
	}
	none := diff.Point{Image: image, Digest: "d"}
	long := strings.Repeat("line\n", 1000)
	r, err := diff.Compare(t.Context(), none, at(reg("binary", "a\x00b"), reg("latin", "\xe4"), reg("long", long), reg("short", "x\n")), diff.Options{FileBytes: 100})
	if err != nil || len(r.Changes) != 4 {
		t.Fatalf("Compare() = %+v, %v", r, err)
	}
	for i, want := range []struct{ binary, large bool }{{true, false}, {true, false}, {false, true}, {false, false}} {
		if c := r.Changes[i]; c.Binary != want.binary || c.Large != want.large || strings.Contains(c.Patch, "line\nline") {
			t.Errorf("%s: %+v", c.Path, c)
		}
	}
	r, err = diff.Compare(t.Context(), none, at(reg("a", "1\n"), reg("b", "1\n"), reg("c", "1\n")), diff.Options{Changes: 2, PatchBytes: 100})
	if err != nil || !r.Truncated || len(r.Changes) != 2 || r.PatchesLeftOut != 1 {
		t.Errorf("Compare(limits) = %+v, %v", r, err)
	}
	if _, err := diff.Compare(t.Context(), none, at(reg("a", ""), reg("b", "")), diff.Options{Entries: 2}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Compare(too many entries) = %v", err)
	}
	for name, bad := range map[string]item{
		"climbs":          reg("../x", ""),
		"no directory":    reg("missing/x", ""),
		"dangling link":   link("l", "./nothing", tar.TypeLink),
		"link to a dir":   link("l", "./", tar.TypeLink),
		"below a symlink": reg("opt/link/x", ""),
	} {
		if _, err := diff.Compare(t.Context(), none, at(bad), diff.Options{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Compare(%s) = %v, want invalid argument", name, err)
		}
	}
	damaged := at(reg("a", "text"))
	if err := damaged.Layer.Truncate(700); err != nil {
		t.Fatal(err)
	}
	if _, err := diff.Compare(t.Context(), none, damaged, diff.Options{}); err == nil {
		t.Error("Compare(damaged layer) succeeds")
	}
}

// Two texts that have nothing in common take bounded time.
func TestAllDiffers(t *testing.T) {
	t.Parallel()
	var a, b strings.Builder
	for i := range 20_000 {
		fmt.Fprintln(&a, "a", i)
		fmt.Fprintln(&b, "b", i)
	}
	image := base(t, file("f", a.String()))
	r, err := diff.Compare(t.Context(), diff.Point{Image: image, Digest: "d"},
		diff.Point{Image: image, Digest: "d", Layer: layer(t, dir(""), reg("f", b.String()))}, diff.Options{})
	if err != nil || len(r.Changes) != 1 || r.Changes[0].Insertions != 20_000 || r.Changes[0].Deletions != 20_000 {
		t.Fatalf("Compare() = %d changes, %v", len(r.Changes), err)
	}
}
