package setup_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/agent/setup"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"

func guest(t *testing.T) setup.Guest {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/passwd": passwd, "etc/group": "root:x:0:\nuser:x:1000:\n", "etc/shadow": "root:*:1::::::\n",
		"etc/skel/.bashrc": "rc", "etc/skel/.bash_logout": "x", "etc/skel/.config/c": "c", "etc/sudoers.d/README": "",
		"home/user/.keep": "",
	} {
		put(t, root, name, text)
	}
	return setup.Guest{Root: root}
}

func put(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, g setup.Guest, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.Root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestUser(t *testing.T) {
	t.Parallel()
	g := guest(t)
	do := func(u setup.User) setup.Result {
		t.Helper()
		res, err := g.Do(setup.Request{User: &u}, nil)
		if err != nil {
			t.Fatalf("user %+v: %v", u, err)
		}
		return res
	}
	if res := do(setup.User{Name: "app", Sudo: true}); !res.Changed || res.Home != "/home/app" {
		t.Errorf("new user = %+v", res)
	}
	if got, want := read(t, g, "etc/passwd"), passwd+"app:x:1001:1001::/home/app:/bin/sh\n"; got != want {
		t.Errorf("passwd = %q, want %q", got, want)
	}
	if got := read(t, g, "etc/group"); !strings.HasSuffix(got, "app:x:1001:\n") {
		t.Errorf("group = %q", got)
	}
	if got := read(t, g, "etc/shadow"); !strings.HasSuffix(got, "app:*:19000:0:99999:7:::\n") {
		t.Errorf("shadow = %q", got)
	}
	if got := read(t, g, "home/app/.bashrc") + read(t, g, "home/app/.config/c"); got != "rcc" {
		t.Errorf("skeleton = %q", got)
	}
	if _, err := os.Stat(filepath.Join(g.Root, "home/app/.bash_logout")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf(".bash_logout was copied: %v", err)
	}
	if got := read(t, g, "etc/sudoers.d/app"); !strings.HasPrefix(got, "app ALL=(ALL:ALL) NOPASSWD: ALL\n") {
		t.Errorf("sudoers = %q", got)
	}
	if res := do(setup.User{Name: "app", Sudo: true}); res.Changed {
		t.Error("a user that is there was changed")
	}
	if res := do(setup.User{Name: "user"}); res.Changed || res.Home != "/home/user" {
		t.Errorf("existing user = %+v", res)
	}
	if res := do(setup.User{Name: "1001"}); res.Home != "/home/app" {
		t.Errorf("user by number = %+v", res)
	}
	for _, bad := range []string{"", "a:b", "../x", "x\ny", "-x", "a/b", "4242", strings.Repeat("x", 40), "A"} {
		before := read(t, g, "etc/passwd")
		if _, err := g.Do(setup.Request{User: &setup.User{Name: bad, Sudo: true}}, nil); !errors.Is(err, setup.ErrRefused) {
			t.Errorf("user %q = %v, want it refused", bad, err)
		}
		if read(t, g, "etc/passwd") != before {
			t.Errorf("user %q changed passwd", bad)
		}
	}
}

func TestDir(t *testing.T) {
	t.Parallel()
	g := guest(t)
	put(t, g.Root, "file", "")
	for _, tt := range []struct {
		path    string
		changed bool
		refused bool
	}{
		{"/new/deep/dir", true, false},
		{"/new/deep/dir/", false, false},
		{"/", false, false},
		{"/file", false, true},
		{"/file/x", false, true},
		{"relative", false, true},
		{"/" + strings.Repeat("n", 300), false, true},
	} {
		res, err := g.Do(setup.Request{Dir: &setup.Dir{Path: tt.path, User: "user"}}, nil)
		if errors.Is(err, setup.ErrRefused) != tt.refused || err != nil && !tt.refused || res.Changed != tt.changed {
			t.Errorf("dir %.40q = %+v, %v", tt.path, res, err)
		}
	}
	if _, err := g.Do(setup.Request{Dir: &setup.Dir{Path: "/x", User: "nobody99"}}, nil); err == nil || err.Error() != "invalid username: 'nobody99'" {
		t.Errorf("unknown user = %v", err)
	}
}

type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1e9, 0)}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750}, ""}
}

func link(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func hard(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}

func pack(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		err := w.WriteHeader(&e.Header)
		if err == nil {
			_, err = w.Write([]byte(e.body))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func request(source, dest string) setup.Copy {
	return setup.Copy{Source: source, Dest: dest, User: "user", Mode: -1, Entries: 1000, Bytes: 1 << 30}
}

// tree lists what is below dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch fi, err := d.Info(); {
		case err != nil:
			return err
		case d.Type() == fs.ModeSymlink:
			got[rel], err = os.Readlink(path)
			got[rel] = "-> " + got[rel]
			return err
		case d.IsDir():
			got[rel] = fi.Mode().String()
		default:
			b, err := os.ReadFile(path)
			got[rel] = fi.Mode().String() + " " + string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCopy(t *testing.T) {
	t.Parallel()
	app := []entry{dir("app"), file("app/main.py", "m"), dir("app/lib"), file("app/lib/l", "l"), link("app/lib/abs", "/usr/bin/env"), hard("app/again", "app/main.py")}
	tests := []struct {
		name    string
		copy    setup.Copy
		entries []entry
		want    map[string]string
	}{
		{"a directory's contents", request("app/", "/srv/x"), app, map[string]string{
			"x": "drwxr-x---", "x/main.py": "-rw-r--r-- m", "x/lib": "drwxr-x---", "x/lib/l": "-rw-r--r-- l",
			"x/lib/abs": "-> /usr/bin/env", "x/again": "-rw-r--r-- m",
		}},
		{"everything", request(".", "/srv"), app[:2], map[string]string{"app": "drwxr-x---", "app/main.py": "-rw-r--r-- m"}},
		{"a file under a new name", request("a.txt", "/srv/b.txt"), []entry{file("a.txt", "a")}, map[string]string{"b.txt": "-rw-r--r-- a"}},
		{"a file into a directory", request("d/a.txt", "/srv/in/"), []entry{file("d/a.txt", "a")}, map[string]string{
			"in": "drwxr-xr-x", "in/a.txt": "-rw-r--r-- a",
		}},
		{"a file into a directory that is there", request("a.txt", "/srv"), []entry{file("a.txt", "a")}, map[string]string{"a.txt": "-rw-r--r-- a"}},
		{"a link", request("l", "/srv/l"), []entry{link("l", "elsewhere")}, map[string]string{"l": "-> elsewhere"}},
		{"wildcards", request("src/*.txt", "/srv/"), []entry{file("src/a.txt", "a"), file("src/b.txt", "b"), file("other", "o")}, map[string]string{
			"a.txt": "-rw-r--r-- a", "b.txt": "-rw-r--r-- b",
		}},
		{"mode", func() setup.Copy { c := request("app", "/srv/x"); c.Mode = 0o700; return c }(), app[:3], map[string]string{
			"x": "drwx------", "x/main.py": "-rwx------ m", "x/lib": "drwx------",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := guest(t)
			if err := os.MkdirAll(filepath.Join(g.Root, "srv"), 0o755); err != nil {
				t.Fatal(err)
			}
			res, err := g.Do(setup.Request{Copy: &tt.copy}, bytes.NewReader(pack(t, tt.entries...)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tree(t, filepath.Join(g.Root, "srv"))); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			if !res.Changed || res.Files == 0 {
				t.Errorf("result = %+v", res)
			}
		})
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	g := guest(t)
	put(t, g.Root, "etc/group", "root:x:0:\nstaff:x:50:\nbroken\n")
	for spec, want := range map[string]string{
		"user": "1000:1000", "user:staff": "1000:50", "0:50": "0:50", "1000": "1000:1000", "4321": "4321:4321", "4321:7": "4321:7",
		"root:root": "0:0",
	} {
		c := request("f", "/f")
		c.User = spec
		if _, err := g.Do(setup.Request{Copy: &c}, bytes.NewReader(pack(t, file("f", "x")))); err != nil {
			t.Errorf("owner %q = %v", spec, err)
			continue
		}
		fi, err := os.Stat(filepath.Join(g.Root, "f"))
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != want {
			t.Errorf("owner %q = %s, want %s", spec, got, want)
		}
	}
	for _, bad := range []string{"nobody9", "user:nogroup9", ":", "user:", "-1"} {
		c := request("f", "/f")
		c.User = bad
		if _, err := g.Do(setup.Request{Copy: &c}, bytes.NewReader(pack(t, file("f", "x")))); !errors.Is(err, setup.ErrRefused) {
			t.Errorf("owner %q = %v, want it refused", bad, err)
		}
	}
}

func TestCopyOntoWhatIsThere(t *testing.T) {
	t.Parallel()
	g := guest(t)
	put(t, g.Root, "srv/old", "old")
	put(t, g.Root, "srv/file", "old")
	put(t, g.Root, "real/x", "x")
	if err := os.Symlink("../real", filepath.Join(g.Root, "srv/linked")); err != nil {
		t.Fatal(err)
	}
	c := request("a", "/srv")
	_, err := g.Do(setup.Request{Copy: &c}, bytes.NewReader(pack(t, dir("a"), file("a/file", "new"), dir("a/linked"), file("a/linked/y", "y"))))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"old": "-rw-r--r-- old", "file": "-rw-r--r-- new", "linked": "-> ../real"}
	if diff := cmp.Diff(want, tree(t, filepath.Join(g.Root, "srv"))); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if got := read(t, g, "real/x") + read(t, g, "real/y"); got != "xy" {
		t.Errorf("behind the link %q, want the directory it leads to merged", got)
	}
	if fi, err := os.Stat(filepath.Join(g.Root, "srv")); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("mode of a directory that was there = %v, %v", fi.Mode(), err)
	}
}

// TestHostileArchives: each is refused by a text that names what is wrong, and
// writes nothing outside of the destination.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("\x00", 1<<20)
	var bomb []entry
	for range 100 {
		bomb = append(bomb, file("z", zeros))
	}
	many := make([]entry, 0, 1001)
	for range 1001 {
		many = append(many, dir("d"))
	}
	huge := file("h", "")
	huge.Size = 1 << 31
	device := func(kind byte) entry {
		return entry{tar.Header{Typeflag: kind, Name: "dev", Devmajor: 1, Devminor: 3}, ""}
	}
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"climbs", pack(t, file("../evil", "x")), "leaves the archive with .."},
		{"climbs from within", pack(t, file("a/../../evil", "x")), "leaves the archive with .."},
		{"absolute", pack(t, file("/evil", "x")), "path is absolute"},
		{"through a link", pack(t, link("l", "/"), file("l/evil", "x")), `leads through the symbolic link "l"`},
		{"through a relative link", pack(t, dir("a"), link("a/l", "../.."), file("a/l/evil", "x")), `through the symbolic link "a/l"`},
		{"a directory through a link", pack(t, link("l", "/"), dir("l/evil")), "through the symbolic link"},
		{"hard link out", pack(t, hard("h", "/etc/passwd")), "leaves the archive: its path is absolute"},
		{"hard link that climbs", pack(t, hard("h", "../etc/passwd")), "leaves the archive with .."},
		{"hard link to what it has not", pack(t, hard("h", "etc/passwd")), "no file of the archive"},
		{"hard link to a link", pack(t, link("l", "/etc/passwd"), hard("h", "l")), "no file of the archive"},
		{"character device", pack(t, device(tar.TypeChar)), "is a device"},
		{"block device", pack(t, device(tar.TypeBlock)), "is a device"},
		{"pipe", pack(t, device(tar.TypeFifo)), "is a device"},
		{"bomb", pack(t, bomb...), "grows more than 200 times"},
		{"too many entries", pack(t, many...), "more than 1000 entries"},
		{"too many bytes", func() []byte {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			_ = w.WriteHeader(&huge.Header)
			return b.Bytes()
		}(), "more than 1073741824 bytes"},
		{"truncated", pack(t, file("f", strings.Repeat("abc", 9999)))[:60], "damaged"},
		{"no archive", []byte("this is no archive at all, and it is longer than a block" + strings.Repeat("x", 600)), "damaged"},
		{"nothing of the source", pack(t, file("other", "x")), `nothing of "src"`},
		{"over a directory", pack(t, dir("src"), dir("src/d"), file("src/d", "x")), "is a directory"},
		{"name too long", pack(t, file(strings.Repeat("n", 256), "x")), "name of 256 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := guest(t)
			c := request("src", "/srv/in")
			if tt.name != "nothing of the source" && tt.name != "over a directory" {
				c.Source = "."
			}
			before := tree(t, g.Root)
			_, err := g.Do(setup.Request{Copy: &c}, bytes.NewReader(tt.raw))
			if !errors.Is(err, setup.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Do = %v, want it refused with %q", err, tt.want)
			}
			if err := os.RemoveAll(filepath.Join(g.Root, "srv")); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, tree(t, g.Root)); diff != "" {
				t.Errorf("outside of the destination (-before +after):\n%s", diff)
			}
		})
	}
	for _, source := range []string{"..", "a/../../b"} {
		c := request(source, "/srv")
		if _, err := guest(t).Do(setup.Request{Copy: &c}, bytes.NewReader(pack(t, file("f", "x")))); !errors.Is(err, setup.ErrRefused) {
			t.Errorf("source %q = %v", source, err)
		}
	}
}

func TestMainReports(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if code := setup.Main([]string{`{"dir":{"path":"relative"}}`}, nil, &out, &errs); code != setup.ExitRefused || !strings.Contains(errs.String(), "not absolute") {
		t.Errorf("Main = %d, %q", code, errs.String())
	}
	if code := setup.Main([]string{"{}"}, nil, &out, &errs); code != setup.ExitRefused {
		t.Errorf("empty request = %d", code)
	}
	if code := setup.Main(nil, nil, &out, &errs); code != setup.ExitRefused {
		t.Errorf("no request = %d", code)
	}
	if out.Len() > 0 {
		t.Errorf("output = %q", out.String())
	}
}
