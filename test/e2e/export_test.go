package e2e_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// caisson runs the command line against a server.
func caisson(t *testing.T, s *testenv.Server, dir string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := s.Command(t.Context(), args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "CAISSON_API_URL="+s.URL, "CAISSON_API_KEY="+s.Key)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func mustCaisson(t *testing.T, s *testenv.Server, dir string, args ...string) (stdout, stderr string) {
	t.Helper()
	out, errs, err := caisson(t, s, dir, args...)
	if err != nil {
		t.Fatalf("caisson %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return out, errs
}

// exportRecipe has files of every kind, and a start command that leaves a number
// which no other start of it has.
const exportRecipe = `
name = "exp"
tags = ["v1"]
template = "base"
start = "cat /proc/sys/kernel/random/uuid > /tmp/nonce; exec python3 -m http.server 8000 --bind 127.0.0.1 --directory /srv"
ready = "curl -fsS http://127.0.0.1:8000/a"
[[steps]]
run = """
mkdir -p /srv && cd /srv && echo hello > a && ln a b && ln -s a c && mkfifo p && install -m 6751 -o user /bin/true suid
touch -d 2001-02-03T04:05:06.789 old .wh.x 'name with space'; mkdir -m 1770 dir; rm -f /home/user/.bashrc; echo 127.0.0.9 nine >> /etc/hosts2
"""
as = "root"
[[steps]]
env = { GREETING = "hello = world" }
[[steps]]
workdir = "/srv"
`

// A template that was exported comes back as it was: its files, what its commands
// see, its start command; with --memory the very state.
func TestTemplateExport(t *testing.T) {
	t.Parallel()
	s := own(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "caisson.toml"), []byte(exportRecipe), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCaisson(t, s, dir, "template", "build")
	mustCaisson(t, s, dir, "template", "export", "exp:v1", "-o", "files.tar")
	mustCaisson(t, s, dir, "template", "export", "exp:v1", "-o", "memory.tar", "--memory")
	look := func(name string) (files, nonce string) {
		b := create(t, s, map[string]any{"templateID": name})
		r := shAs(t, s, b, "user", `curl -fsS http://127.0.0.1:8000/a; echo "$GREETING"; find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run \) -prune `+
			`-o \( -path /etc/hostname -o -path /etc/hosts -o -path /.e2b -o -path /root -o -path / -o -path /etc \) -o -printf '%M %U:%G %n %s %T@ %l %p\n' 2>/dev/null | sort | sha256sum; ls -lA --time-style=full-iso /srv`)
		if r.ExitCode != 0 || !strings.HasPrefix(r.Stdout, "hello\nhello = world\n") {
			t.Errorf("in a sandbox of %s: %+v", name, r)
		}
		if pwd, err := s.ExecAs(t.Context(), b, "", "pwd"); err != nil || strings.TrimSpace(pwd.Stdout) != "/srv" {
			t.Errorf("working directory of %s = %+v, %v", name, pwd, err)
		}
		return r.Stdout, sh(t, s, b, "cat /tmp/nonce").Stdout
	}
	files, nonce := look("exp:v1")
	mustCaisson(t, s, dir, "template", "import", "files.tar", "--name", "copy")
	var diff struct{ Changes []any }
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/diff?from="+url.QueryEscape("exp:v1")+"&to=copy", nil, &diff); err != nil || len(diff.Changes) != 0 {
		t.Errorf("diff = %v, %v, want none", diff.Changes, err)
	}
	gotFiles, gotNonce := look("copy")
	if gotFiles != files || gotNonce == nonce || gotNonce == "" {
		t.Errorf("of the files alone: nonce %q after %q, and\n%s\nwant\n%s", gotNonce, nonce, gotFiles, files)
	}
	mustCaisson(t, s, dir, "template", "import", "memory.tar", "--name", "state")
	gotFiles, gotNonce = look("state")
	if gotFiles != files || gotNonce != nonce {
		t.Errorf("with memory: nonce %q, want %q, and\n%s\nwant\n%s", gotNonce, nonce, gotFiles, files)
	}
	// Another installation runs the start command anew, also after the origin has gone.
	other := anotherInstallation(t)
	out, errs := mustCaisson(t, other, dir, "template", "import", "memory.tar", "--json")
	wantContains(t, "result", out, `"memory": false`)
	wantContains(t, "result", out, `"status": "ready"`)
	wantContains(t, "words", errs, "another installation saved it")
}

// anotherInstallation is a server with the same templates and a seed of its own.
func anotherInstallation(t *testing.T) *testenv.Server {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(os.Getenv("CAISSON_TEST_DATA")), "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data := filepath.Join(dir, "data")
	if err := testenv.CopyData(os.Getenv("CAISSON_TEST_DATA"), data); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(data, "seed")); err != nil {
		t.Fatal(err)
	}
	s, err := testenv.Start(t.Context(), testenv.Options{Binary: os.Getenv("CAISSON_TEST_BIN"), Data: data, Args: []string{"--destroy-on-exit"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// An archive that cannot be taken says why, and changes nothing.
func TestTemplateImportRefuses(t *testing.T) {
	t.Parallel()
	s := own(t)
	dir := t.TempDir()
	mustCaisson(t, s, dir, "template", "export", "base", "-o", "good.tar")
	raw, err := os.ReadFile(filepath.Join(dir, "good.tar"))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := mustCaisson(t, s, dir, "template", "list", "--json")
	refused := func(what, words string, change func([]byte) []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "bad.tar"), change(bytes.Clone(raw)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, errs, err := caisson(t, s, dir, "template", "import", "bad.tar", "--name", "bad")
		if err == nil {
			t.Errorf("%s: imported", what)
		}
		wantContains(t, what, errs, words)
		if after, _ := mustCaisson(t, s, dir, "template", "list", "--json"); after != before {
			t.Errorf("%s: templates are now\n%s", what, after)
		}
		if left, _ := filepath.Glob(filepath.Join(s.Data, "uploads", "*", "*")); len(left) > 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	refused("truncated", "damaged or truncated", func(b []byte) []byte { return b[:len(b)/2] })
	refused("changed layer", "layer 1", func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	images := filepath.Join(s.Data, "images")
	if err := unix.Mount("tmpfs", images, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	refused("full disk", "disk is full", func(b []byte) []byte { return b })
	if err := unix.Unmount(images, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	mustCaisson(t, s, dir, "template", "import", "good.tar", "--name", "good")
}
