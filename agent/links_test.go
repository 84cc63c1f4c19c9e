package agent_test

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// tree describes all that lies below dir: owner, mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(b)
		}
		got[path] = fmt.Sprintf("%d:%d %o %s", st.Uid, st.Gid, st.Mode, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// give makes the file at path, or the link, u's.
func give(t *testing.T, path string, u *user.User) {
	t.Helper()
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Lchown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// TestLinks has every call that changes files go through a link that a user of
// the guest planted. It may do what that user may, and no more; links of root
// are followed.
func TestLinks(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	octet := append([]string{"Content-Type", "application/octet-stream"}, withToken...)
	upload := func(path string) func(*testing.T, *box, string) error {
		return func(t *testing.T, b *box, as string) error {
			return answered(b.request(t, "POST", filesURL(b.home+path, "username", as), "new", octet...))
		}
	}
	move := func(from, to string) func(*testing.T, *box, string) error {
		return func(t *testing.T, b *box, _ string) error {
			_, err := b.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: b.home + from, Destination: b.home + to}))
			return err
		}
	}
	compose := func(from, to string) func(*testing.T, *box, string) error {
		return func(t *testing.T, b *box, as string) error {
			body := fmt.Sprintf(`{"source_paths":["%[1]s%[2]s"],"destination":"%[1]s%[3]s","username":"%[4]s"}`, b.home, from, to, as)
			return answered(b.request(t, "POST", "/files/compose", body, append([]string{"Content-Type", "application/json"}, withToken...)...))
		}
	}
	calls := []struct {
		name string
		do   func(t *testing.T, b *box, as string) error
	}{
		{"upload to a link", upload("/his/file")},
		{"upload to a dangling link", upload("/his/dangling")},
		{"upload below a link", upload("/his/dir/new")},
		{"upload over a file below a link", upload("/his/dir/file")},
		{"upload in a new directory below a link", upload("/his/dir/a/b/new")},
		{"make a directory", func(t *testing.T, b *box, _ string) error {
			_, err := b.files.MakeDir(t.Context(), connect.NewRequest(&pb.MakeDirRequest{Path: b.home + "/his/dir/made"}))
			return err
		}},
		{"remove", func(t *testing.T, b *box, _ string) error {
			_, err := b.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: b.home + "/his/dir/sub"}))
			return err
		}},
		{"move from", move("/his/dir/file", "/his/moved")},
		{"move to", move("/his/own", "/his/dir/moved")},
		{"move onto", move("/his/own", "/his/dir/file")},
		{"compose from a link", compose("/his/file", "/his/composed")},
		{"compose below a link", compose("/his/own", "/his/dir/composed")},
	}
	kinds := []struct {
		name string
		// linkOf owns the links, of what they lead to.
		linkOf, of *user.User
		target     func(home string) string
		denied     bool
	}{
		{"user's link to root's files", daemon, nil, func(home string) string { return home + "/area" }, true},
		{"user's relative link to root's files", daemon, nil, func(string) string { return "../area" }, true},
		{"user's link to root's link", daemon, nil, func(home string) string { return home + "/byroot" }, true},
		{"root's link to user's link", nil, nil, func(home string) string { return home + "/byuser" }, true},
		{"user's link to user's files", daemon, daemon, func(home string) string { return home + "/area" }, false},
		{"root's link to user's files", nil, daemon, func(home string) string { return home + "/area" }, false},
		{"root's link to root's files", nil, nil, func(home string) string { return home + "/area" }, false},
	}
	for _, k := range kinds {
		for _, call := range calls {
			for _, as := range []string{"daemon", "root"} {
				t.Run(k.name+"/"+call.name+"/"+as, func(t *testing.T) {
					t.Parallel()
					b := start(t, nil)
					area, his := b.home+"/area", b.home+"/his"
					write(t, area+"/file", "old")
					write(t, area+"/sub/file", "old")
					write(t, his+"/own", "own")
					give(t, his, daemon)
					give(t, his+"/own", daemon)
					if err := os.Chmod(area+"/file", 0o600); err != nil {
						t.Fatal(err)
					}
					link(t, area, b.home+"/byroot")
					link(t, area, b.home+"/byuser")
					give(t, b.home+"/byuser", daemon)
					for name, rest := range map[string]string{"file": "/file", "dangling": "/dangling", "dir": ""} {
						link(t, k.target(b.home)+rest, his+"/"+name)
						if k.linkOf != nil {
							give(t, his+"/"+name, k.linkOf)
						}
					}
					if k.of != nil {
						give(t, area, k.of)
						give(t, area+"/file", k.of)
						give(t, area+"/sub", k.of)
					}
					before := tree(t, b.home)
					err := call.do(t, b, as)
					if !k.denied {
						if err != nil {
							t.Errorf("got %v, want success", err)
						}
						return
					}
					if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "'daemon'") {
						t.Errorf("got %v, want permission denied for daemon's link", err)
					}
					if diff := cmp.Diff(before, tree(t, b.home)); diff != "" {
						t.Errorf("a refused call changed files (-before +after):\n%s", diff)
					}
				})
			}
		}
	}
}

// answered gives a REST answer the code of an RPC's.
func answered(code int, body string, _ http.Header) error {
	switch code {
	case 200:
		return nil
	case 403:
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s", body))
	}
	return fmt.Errorf("%d %s", code, body)
}

// TestLinkRights tells what the owner of a link may do where neither all nor
// nothing is the owner's.
func TestLinkRights(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("no user nobody here")
	}
	tests := []struct {
		name          string
		dirMode, mode fs.FileMode
		dirOf, of     *user.User // nil for root
		path          string
		code          int
		owner         *user.User // afterwards, when it is written
	}{
		{"new file in a directory for all", 0o777, 0, nil, nil, "/area/new", 200, daemon},
		{"new file in a directory of another", 0o755, 0, nobody, nil, "/area/new", 403, nil},
		{"file for all keeps its owner", 0o755, 0o666, nil, nil, "/area/f", 200, nil},
		{"file of another for all keeps its owner", 0o755, 0o666, nil, nobody, "/area/f", 200, nobody},
		{"file of another in own directory", 0o755, 0o644, daemon, nobody, "/area/f", 403, nil},
		{"directory that cannot be searched", 0o766, 0o666, nil, nil, "/area/f", 403, nil},
		{"own read-only file", 0o755, 0o444, nil, daemon, "/area/f", 403, nil},
		{"own file becomes the requesting user's", 0o755, 0o644, nil, daemon, "/area/f", 200, &user.User{Uid: "0", Gid: "0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := start(t, nil)
			write(t, b.home+"/area/f", "old")
			for path, of := range map[string]*user.User{"/area": tt.dirOf, "/area/f": tt.of} {
				if of != nil {
					give(t, b.home+path, of)
				}
			}
			for path, mode := range map[string]fs.FileMode{"/area": tt.dirMode, "/area/f": tt.mode} {
				if err := os.Chmod(b.home+path, mode); err != nil {
					t.Fatal(err)
				}
			}
			link(t, b.home+"/area", b.home+"/l")
			give(t, b.home+"/l", daemon)
			as := "daemon"
			if tt.owner != nil && tt.owner.Uid == "0" {
				as = "root"
			}
			code, body, _ := b.request(t, "POST", filesURL(b.home+strings.Replace(tt.path, "/area", "/l", 1), "username", as), "new",
				append([]string{"Content-Type", "application/octet-stream"}, withToken...)...)
			if code != tt.code {
				t.Fatalf("upload = %d %s, want %d", code, body, tt.code)
			}
			want := "0"
			if tt.owner != nil {
				want = tt.owner.Uid
			}
			var st syscall.Stat_t
			if code == 200 && (syscall.Stat(b.home+tt.path, &st) != nil || itoa(st.Uid) != want) {
				t.Errorf("owner = %d, want %s", st.Uid, want)
			}
		})
	}
}

// TestRemoveSticky keeps the owner of a link from removing what others have in
// a directory like /tmp.
func TestRemoveSticky(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	write(t, b.home+"/tmp/other", "")
	write(t, b.home+"/tmp/own", "")
	give(t, b.home+"/tmp/own", daemon)
	if err := os.Chmod(b.home+"/tmp", 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	link(t, b.home+"/tmp", b.home+"/l")
	give(t, b.home+"/l", daemon)
	for name, want := range map[string]connect.Code{"other": connect.CodePermissionDenied, "own": 0} {
		_, err := b.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: b.home + "/l/" + name}))
		if want == 0 && err != nil || want != 0 && connect.CodeOf(err) != want {
			t.Errorf("Remove(%s) = %v, want %v", name, err, want)
		}
	}
}

// TestSwap uploads and makes directories where somebody keeps exchanging a
// directory for a link.
func TestSwap(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	write(t, b.home+"/area/file", "old")
	if err := os.Chmod(b.home+"/area/file", 0o600); err != nil {
		t.Fatal(err)
	}
	his := b.home + "/his"
	for _, dir := range []string{his, his + "/d"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		give(t, dir, daemon)
	}
	write(t, his+"/f", "")
	link(t, b.home+"/area", his+"/dl")
	link(t, b.home+"/area/file", his+"/fl")
	for _, name := range []string{"/f", "/dl", "/fl"} {
		give(t, his+name, daemon)
	}
	before := tree(t, b.home+"/area")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, pair := range [][2]string{{"/d", "/dl"}, {"/f", "/fl"}} {
				if err := unix.Renameat2(unix.AT_FDCWD, his+pair[0], unix.AT_FDCWD, his+pair[1], unix.RENAME_EXCHANGE); err != nil {
					t.Errorf("exchange: %v", err)
					return
				}
			}
		}
	})
	for i := range 150 {
		for _, path := range []string{"/f", "/d/file", "/d/new" + strconv.Itoa(i) + "/x"} {
			code, body, _ := b.request(t, "POST", filesURL(his+path, "username", "daemon"), "new",
				append([]string{"Content-Type", "application/octet-stream"}, withToken...)...)
			if code != 200 && code != 403 && code != 400 { // 400: neither a directory nor a link, at different times
				t.Errorf("upload %s = %d %s", path, code, body)
			}
		}
		_, _ = b.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: his + "/d/file"}))
	}
	if diff := cmp.Diff(before, tree(t, b.home+"/area")); diff != "" {
		t.Errorf("root's files changed (-before +after):\n%s", diff)
	}
}

// TestFifoIsLeftAlone: even opening a fifo would be felt by its other end.
func TestFifoIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	fifo := b.home + "/fifo"
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	link(t, "fifo", b.home+"/l")
	fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, path := range []string{fifo, b.home + "/l"} {
		code, body, _ := b.request(t, "POST", filesURL(path), "x", append([]string{"Content-Type", "application/octet-stream"}, withToken...)...)
		if code != 400 {
			t.Errorf("upload to %s = %d %s, want 400", path, code, body)
		}
	}
	code, body, _ := b.request(t, "POST", "/files/compose", fmt.Sprintf(`{"source_paths":["%[1]s"],"destination":"%[1]s2"}`, fifo),
		append([]string{"Content-Type", "application/json"}, withToken...)...)
	if code != 400 {
		t.Errorf("compose from a fifo = %d %s, want 400", code, body)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 0); err != nil || poll[0].Revents != 0 {
		t.Errorf("the reader saw %#x, %v: the agent opened the fifo", poll[0].Revents, err)
	}
}

// TestRemoveKeepsTargets removes a tree with links in it.
func TestRemoveKeepsTargets(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	write(t, b.home+"/area/file", "old")
	write(t, b.home+"/tree/sub/f", "")
	link(t, b.home+"/area", b.home+"/tree/sub/dir")
	link(t, b.home+"/area/file", b.home+"/tree/file")
	link(t, b.home+"/area", b.home+"/l")
	before := tree(t, b.home+"/area")
	for _, path := range []string{"/tree", "/l"} {
		if _, err := b.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: b.home + path})); err != nil {
			t.Errorf("Remove(%s) = %v", path, err)
		}
		if _, err := os.Lstat(b.home + path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if diff := cmp.Diff(before, tree(t, b.home+"/area")); diff != "" {
		t.Errorf("targets changed (-before +after):\n%s", diff)
	}
}

// TestMoveAcrossKeepsOwners moves to another file system what belongs to
// several users, with a link out of it.
func TestMoveAcrossKeepsOwners(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	other := b.home + "/other"
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", other, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a second file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
	write(t, b.home+"/area/file", "old")
	before := tree(t, b.home+"/area")
	from := b.home + "/from"
	write(t, from+"/program", "p")
	write(t, from+"/sub/f", "f")
	link(t, b.home+"/area/file", from+"/l")
	if err := unix.Mkfifo(from+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/program", "/sub", "/l", "/fifo"} {
		give(t, from+name, daemon)
	}
	for name, mode := range map[string]uint32{"/program": 0o4755, "/sub": 0o1777, "/fifo": 0o622} {
		if err := syscall.Chmod(from+name, mode); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{}
	for path, what := range tree(t, from) {
		want[strings.Replace(path, from, other+"/to", 1)] = what
	}
	if _, err := b.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: from, Destination: other + "/to"})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, tree(t, other+"/to")); diff != "" {
		t.Errorf("moved (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, tree(t, b.home+"/area")); diff != "" {
		t.Errorf("the link's target changed (-before +after):\n%s", diff)
	}
	if left, err := os.ReadDir(other); err != nil || len(left) != 1 {
		t.Errorf("left at the destination: %v, %v", left, err)
	}
}
