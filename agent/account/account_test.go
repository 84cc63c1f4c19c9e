package account_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/agent/account"
)

func TestDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	db := account.NewDatabaseFiles(passwd, group)
	if u, err := db.Lookup("root"); err != nil || u.UID != 0 || u.Home != "/root" {
		t.Errorf("root without a database = %+v, %v", u, err)
	}
	put(passwd, "root:x:0:0::/root:/bin/sh\nbroken\nuser:x:1000:1000::/home/user:/bin/bash\ntwin:x:1000:7::/t:\nhuge:x:99999999999:0:::\nhomeless:x:5:5:::\n")
	put(group, "root:x:0:\nuser:x:1000:\nsudo:x:27:user,twin\ndocker:x:28:other,user\nuser2:x:1000:user\n")
	u, err := db.Lookup("user")
	want := account.User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user", Groups: []uint32{27, 28}}
	if diff := cmp.Diff(want, u); err != nil || diff != "" {
		t.Errorf("user: %v (-want +got):\n%s", err, diff)
	}
	if _, err := db.Lookup("huge"); !errors.Is(err, account.ErrUnknown) {
		t.Errorf("Lookup(huge) = %v, want ErrUnknown", err)
	}
	if u, _ := db.Lookup("homeless"); u.Home != "/" {
		t.Errorf("home of homeless = %q", u.Home)
	}
	if a, b, c := db.UserName(1000), db.UserName(42), db.GroupName(27); a != "user" || b != "42" || c != "sudo" {
		t.Errorf("names = %q, %q, %q", a, b, c)
	}
	put(passwd, "new:x:77:77::/n:\n")
	if u, err := db.Lookup("new"); err != nil || u.UID != 77 {
		t.Errorf("a user added later = %+v, %v", u, err)
	}
	if _, err := db.Lookup("user"); !errors.Is(err, account.ErrUnknown) {
		t.Errorf("a user removed later: %v", err)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	u := account.User{Name: "user", Home: "/home/user"}
	for _, tt := range []struct {
		workdir, path, want string
		err                 error
	}{
		{"", "", "/home/user", nil},
		{"/app", "", "/app", nil},
		{"sub", "", "/home/user/sub", nil},
		{"/app", "~", "/home/user", nil},
		{"/app", "~/x", "/home/user/x", nil},
		{"/app", "x/y", "/home/user/x/y", nil},
		{"/app", "../x", "/home/x", nil},
		{"", "../../../../etc", "/etc", nil},
		{"", "/a/../b//c/.", "/b/c", nil},
		{"", "/", "/", nil},
		{"", ".", "/home/user", nil},
		{"", "a~b", "/home/user/a~b", nil},
		{"", "~root", "", account.ErrOtherHome},
		{"", "~~", "", account.ErrOtherHome},
		{"", "a\x00b", "", account.ErrNUL},
	} {
		got, err := account.Resolve(u, tt.workdir, tt.path)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("Resolve(%q, %q) = %q, %v; want %q, %v", tt.workdir, tt.path, got, err, tt.want, tt.err)
		}
	}
}

// FuzzResolve must give absolute clean paths without NUL, or an error.
func FuzzResolve(f *testing.F) {
	f.Add("/home/user", "", "x")
	f.Add("", "~", "~/../..")
	f.Add("relative", "/w", "a\x00b")
	f.Fuzz(func(t *testing.T, home, workdir, path string) {
		if strings.ContainsRune(home, 0) {
			return // not possible in a database line
		}
		got, err := account.Resolve(account.User{Home: home}, workdir, path)
		if err == nil && (!filepath.IsAbs(got) || filepath.Clean(got) != got || strings.ContainsRune(got, 0)) {
			t.Fatalf("Resolve(%q, %q, %q) = %q", home, workdir, path, got)
		}
	})
}
