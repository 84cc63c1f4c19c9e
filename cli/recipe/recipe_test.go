package recipe_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/cli/recipe"
	"github.com/caisson-dev/caisson/client"
)

// write makes files below a new directory; a name that ends in / is a directory,
// a text that begins with "-> " a link.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, name, text string, o recipe.Options) (recipe.Spec, error) {
	t.Helper()
	return recipe.Load(filepath.Join(write(t, map[string]string{name: text}), name), o)
}

func flat(s recipe.Spec) []string {
	var out []string
	for _, st := range s.Recipe.Steps {
		out = append(out, strings.Join(append([]string{st.Type}, st.Args...), "|"))
	}
	return out
}

const begin = "USER|root\nWORKDIR|/\n"

func TestDockerfile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in, image, steps, start string
	}{
		"least":         {"FROM a", "a", begin + "USER|user\nWORKDIR|/home/user", ""},
		"user":          {"FROM a\nUSER app:grp\nWORKDIR /x", "a", begin + "USER|app\nWORKDIR|/x", ""},
		"arg in from":   {"ARG T=3.13\nFROM python:${T}-slim AS x\nUSER u\nWORKDIR /", "python:3.13-slim", begin + "USER|u\nWORKDIR|/", ""},
		"given arg":     {"ARG G=1\nFROM a:$G\nARG G=5\nRUN echo $G\nWORKDIR /$G\nUSER u", "a:7", begin + "ARG|G|7\nRUN|echo $G\nWORKDIR|/7\nUSER|u", ""},
		"env":           {"FROM a\nENV A=\"b c\" P=$PATH:/x\nENV OLD form of it\nUSER u\nWORKDIR $A", "a", begin + "ENV|A|b c|P|$PATH:/x\nENV|OLD|form of it\nUSER|u\nWORKDIR|b c", ""},
		"continuation":  {"FROM a\nRUN one && \\\n  two\nUSER u\nWORKDIR /", "a", begin + "RUN|one &&   two\nUSER|u\nWORKDIR|/", ""},
		"exec form":     {"FROM a\nRUN [\"sh\", \"-c\", \"echo 'x y'\"]\nUSER u\nWORKDIR /", "a", begin + `RUN|sh -c 'echo '\''x y'\'''` + "\nUSER|u\nWORKDIR|/", ""},
		"heredoc":       {"FROM a\nRUN <<EOF\none\ntwo\nEOF\nUSER u\nWORKDIR /", "a", begin + "RUN|one\ntwo\n\nUSER|u\nWORKDIR|/", ""},
		"heredoc input": {"FROM a\nRUN cat <<EOF > f\none\nEOF\nUSER u\nWORKDIR /", "a", begin + "RUN|cat <<EOF > f\none\nEOF\nUSER|u\nWORKDIR|/", ""},
		"copy":          {"FROM a\nCOPY --chown=u:g --chmod=755 a b /dst/\nADD /c.txt .\nUSER u\nWORKDIR /", "a", begin + "COPY|a|/dst/|u:g|755\nCOPY|b|/dst/|u:g|755\nCOPY|c.txt|.||\nUSER|u\nWORKDIR|/", ""},
		"cmd":           {"FROM a\nUSER u\nWORKDIR /\nCMD [\"a\", \"b c\"]", "a", begin + "USER|u\nWORKDIR|/", "a 'b c'"},
		"entrypoint":    {"FROM a\nUSER u\nWORKDIR /\nCMD old\nENTRYPOINT [\"e\"]\nCMD [\"x\"]", "a", begin + "USER|u\nWORKDIR|/", "e x"},
		"cmd first":     {"FROM a\nUSER u\nWORKDIR /\nCMD [\"x\"]\nENTRYPOINT [\"e\"]", "a", begin + "USER|u\nWORKDIR|/", "e x"},
		"left out":      {"FROM a\nEXPOSE 80\nLABEL a=b\nVOLUME /x\nUSER u\nWORKDIR /\nHEALTHCHECK NONE", "a", begin + "USER|u\nWORKDIR|/", ""},
	} {
		s, err := load(t, "Dockerfile", c.in, recipe.Options{Args: map[string]string{"G": "7"}})
		if err != nil {
			t.Errorf("%s: Load() = %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.steps, strings.Join(flat(s), "\n")); diff != "" || s.Recipe.FromImage != c.image || s.Recipe.Start != c.start {
			t.Errorf("%s: image %q, start %q, steps (-want +got):\n%s", name, s.Recipe.FromImage, s.Recipe.Start, diff)
		}
		if len(s.Titles) != len(s.Recipe.Steps) {
			t.Errorf("%s: %d titles of %d steps", name, len(s.Titles), len(s.Recipe.Steps))
		}
		if want := map[bool]string{true: "sleep 20"}[c.start != ""]; s.Recipe.Ready != want {
			t.Errorf("%s: ready = %q, want %q", name, s.Recipe.Ready, want)
		}
	}
}

func TestDockerfileRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                       "file with no instructions",
		"RUN x":                                  "Dockerfile:1: RUN before FROM",
		"ARG A":                                  "there is no FROM",
		"FROM $NONE":                             "FROM has no image",
		"FROM scratch":                           "FROM scratch",
		"FROM a\nFROM b":                         "Dockerfile:2: a second FROM",
		"FROM --platform=windows/x a":            "--platform=windows/x is not supported",
		"FROM a\nCOPY --from=b c d":              "COPY --from",
		"FROM a\nCOPY --exclude=x c d":           "--exclude",
		"FROM a\nCOPY a b c":                     "ends in /",
		"FROM a\nADD https://x/y /y":             "ADD of https://x/y",
		"FROM a\nADD x.tar.gz /y":                "ADD unpacks x.tar.gz",
		"FROM a\nCOPY <<EOF /x\nhi\nEOF":         "text of its own",
		"FROM a\nRUN --mount=type=secret,id=x y": "--mount=type=secret",
		"FROM a\nRUN --network=none y":           "--network=none",
		"FROM a\nONBUILD RUN x":                  "ONBUILD is not supported",
		"FROM a\nSHELL [\"zsh\"]":                "commands run in bash",
		"FROM a\nUSER $NONE":                     "USER is empty",
		"FROM a\nNONSENSE x":                     "NONSENSE",
	} {
		_, err := load(t, "Dockerfile", in, recipe.Options{})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%q) = %v, want %q", in, err, want)
		}
	}
}

func TestTOML(t *testing.T) {
	t.Parallel()
	s, err := load(t, "caisson.toml", `
name = "mine"
tags = ["v1"]
template = "base"
cpus = 4
memory = "2GiB"
free_disk = "10GiB"
start = "serve"
ready = "curl localhost"
[[steps]]
run = """
apt-get update
apt-get install jq"""
as = "root"
[[steps]]
copy = "src/*.py"
to = "/app/"
owner = "app"
mode = "0644"
force = true
[[steps]]
env = { B = "2", A = "1" }
[[steps]]
workdir = "/app"
[[steps]]
user = "app"
sudo = true
`, recipe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	build := client.NewBuild{Name: "mine", Tags: []string{"v1"}, CPUs: 4, MemoryMiB: 2048, FreeDiskMiB: 10240}
	if diff := cmp.Diff(build, s.Build); diff != "" {
		t.Errorf("build (-want +got):\n%s", diff)
	}
	want := []string{"RUN|apt-get update\napt-get install jq|root", "COPY|src/*.py|/app/|app|0644", "ENV|A|1|B|2", "WORKDIR|/app", "USER|app|true"}
	if diff := cmp.Diff(want, flat(s)); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if r := s.Recipe; r.FromTemplate != "base" || r.Start != "serve" || r.Ready != "curl localhost" || !r.Steps[1].Force || r.Steps[0].Force {
		t.Errorf("recipe = %+v", r)
	}
	if s.Titles[0] != "RUN apt-get update …" || s.Sources[1].Pattern != "src/*.py" {
		t.Errorf("titles = %q, sources = %v", s.Titles, s.Sources)
	}
	dir := write(t, map[string]string{"caisson.toml": "name = 'x'\ndockerfile = 'docker/Dockerfile'\n[[steps]]\nrun = 'more'", "docker/Dockerfile": "FROM a\nCMD b"})
	if s, err = recipe.Load(filepath.Join(dir, "caisson.toml"), recipe.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := flat(s); s.Recipe.FromImage != "a" || s.Recipe.Start != "b" || got[len(got)-1] != "RUN|more" {
		t.Errorf("above a Dockerfile = %+v", s.Recipe)
	}
	for in, text := range map[string]string{
		"name = 1":                                   "incompatible",
		"name = 'x'":                                 "exactly one of template, image and dockerfile",
		"template='a'\nimage='b'":                    "exactly one of",
		"template='a'\nnmae='b'":                     `unknown key "nmae"`,
		"template='a'\nmemory='lots'":                "memory",
		"template='a'\n[[steps]]":                    "step 1: give exactly one of",
		"template='a'\n[[steps]]\nrun='a'\ncopy='b'": "exactly one of",
		"template='a'\n[[steps]]\ncopy='b'":          "copy needs to",
		"template='a'\n[[steps]]\nuser='b'\nas='c'":  "as goes with run",
	} {
		if _, err := load(t, "caisson.toml", in, recipe.Options{}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("Load(%q) = %v, want %q", in, err, text)
		}
	}
	if _, err := load(t, "caisson.toml", "dockerfile='nosuch'", recipe.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load() of a missing Dockerfile = %v", err)
	}
}

func names(t *testing.T, dir string, s recipe.Source) ([]string, error) {
	t.Helper()
	tree, err := recipe.OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var out bytes.Buffer
	if err := tree.Archive(s, &out); err != nil {
		return nil, err
	}
	gz, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d %q", h.Name, h.Uid, h.Uname)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(h.Name+" "+h.Linkname+string(text)))
	}
}

func TestTree(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"a.py": "1", "b.txt": "2", "src/c.py": "3", "src/deep/d.py": "4", "src/.hidden": "5", "src/empty/": "",
		"src/link": "-> ../a.py", "out": "-> /etc", "secret/key": "6", "src/skip.log": "7", "src/keep.log": "8",
		".dockerignore": "secret\n**/*.log\n!src/keep.log\n.dockerignore\n",
	})
	for pattern, want := range map[string][]string{
		"a.py":    {"a.py 1"},
		"*.py":    {"a.py 1"},
		"**/*.py": {"a.py 1", "src/c.py 3", "src/deep/d.py 4"},
		"./src/":  {"src/", "src/.hidden 5", "src/c.py 3", "src/deep/", "src/deep/d.py 4", "src/empty/", "src/keep.log 8", "src/link ../a.py"},
		"src/d*":  {"src/deep/", "src/deep/d.py 4"},
		"out":     {"out /etc"},
		".":       {"a.py 1", "b.txt 2", "out /etc", "src/", "src/.hidden 5", "src/c.py 3", "src/deep/", "src/deep/d.py 4", "src/empty/", "src/keep.log 8", "src/link ../a.py"},
	} {
		got, err := names(t, dir, recipe.Source{Pattern: pattern, Dest: "/x"})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Archive(%q) = %v (-want +got):\n%s", pattern, err, diff)
		}
	}
	for pattern, is := range map[string]func(error) bool{
		"nosuch": errdefs.IsNotFound, "secret": errdefs.IsNotFound, "secret/key": errdefs.IsNotFound, "out/passwd": errdefs.IsNotFound,
		"../x": errdefs.IsInvalidArgument, "src/../../x": errdefs.IsInvalidArgument, "/etc/passwd": errdefs.IsInvalidArgument, "a[": errdefs.IsInvalidArgument,
	} {
		if got, err := names(t, dir, recipe.Source{Pattern: pattern}); !is(err) {
			t.Errorf("Archive(%q) = %v, %v", pattern, got, err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := names(t, dir, recipe.Source{Pattern: "pipe"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Archive(pipe) = %v, %v", got, err)
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a": "1", "d/b": "2", "d/l": "-> b"})
	hash := func(pattern, dest string) string {
		t.Helper()
		tree, err := recipe.OpenTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		h, err := tree.Hash(recipe.Source{Pattern: pattern, Dest: dest})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	// SHA-256 of "COPY a /x", the path, the mode (33188), the size and the content.
	if got, want := hash("a", "/x"), "64febc46b059763bf0788f59cc640b1852c83068d27d4d18dbbe2b37f46701ed"; got != want {
		t.Errorf("Hash() = %q, want %q", got, want)
	}
	seen := map[string]string{}
	differs := func(what, pattern, dest string) {
		t.Helper()
		h := hash(pattern, dest)
		if other, ok := seen[h]; ok {
			t.Errorf("%s has the hash of %s", what, other)
		}
		seen[h] = what
		if again := hash(pattern, dest); again != h {
			t.Errorf("%s has another hash the second time", what)
		}
	}
	differs("a directory", "d", "/x")
	differs("another destination", "d", "/y")
	differs("a file", "a", "/x")
	change := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		differs(what, "d", "/x")
	}
	change("another content", os.WriteFile(filepath.Join(dir, "d/b"), []byte("3"), 0o644))
	change("another mode", os.Chmod(filepath.Join(dir, "d/b"), 0o600))
	change("another name", os.Rename(filepath.Join(dir, "d/b"), filepath.Join(dir, "d/c")))
	change("another link", errors.Join(os.Remove(filepath.Join(dir, "d/l")), os.Symlink("c", filepath.Join(dir, "d/l"))))
}
