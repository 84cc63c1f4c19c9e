package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func as[T any](msg *T, user string) *connect.Request[T] {
	r := connect.NewRequest(msg)
	if user != "" {
		r.Header().Set("Authorization", basic(user))
	}
	return r
}

func TestStat(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	dir := b.home
	write(t, dir+"/f.txt", "content")
	if err := os.Chmod(dir+"/f.txt", 0o600); err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	if err := os.Chtimes(dir+"/f.txt", when, when); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "f.txt", "dirlink": dir, "broken": "gone", "loop": "loop"} {
		if err := os.Symlink(target, dir+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	type view struct {
		Name, Path, Type, Perm, Target string
		Size                           int64
		Mode                           uint32
	}
	tests := []struct {
		path string
		want view
	}{
		{"f.txt", view{"f.txt", dir + "/f.txt", "FILE_TYPE_FILE", "-rw-------", "", 7, 0o600}},
		{"./x/../f.txt", view{"f.txt", dir + "/f.txt", "FILE_TYPE_FILE", "-rw-------", "", 7, 0o600}},
		{"link", view{"link", dir + "/link", "FILE_TYPE_FILE", "Lrwxrwxrwx", dir + "/f.txt", 5, 0o600}},
		{"dirlink", view{"dirlink", dir + "/dirlink", "FILE_TYPE_DIRECTORY", "Lrwxrwxrwx", dir, int64(len(dir)), 0o755}},
		{"broken", view{"broken", dir + "/broken", "FILE_TYPE_SYMLINK", "Lrwxrwxrwx", dir + "/gone", 4, 0o777}},
		{"loop", view{"loop", dir + "/loop", "FILE_TYPE_SYMLINK", "Lrwxrwxrwx", dir + "/loop", 4, 0o777}},
	}
	for _, tt := range tests {
		got, err := b.files.Stat(t.Context(), connect.NewRequest(&pb.StatRequest{Path: dir + "/" + tt.path}))
		if err != nil {
			t.Errorf("Stat(%s) = %v", tt.path, err)
			continue
		}
		e := got.Msg.GetEntry()
		v := view{e.GetName(), e.GetPath(), e.GetType().String(), e.GetPermissions(), e.GetSymlinkTarget(), e.GetSize(), e.GetMode()}
		if diff := cmp.Diff(tt.want, v); diff != "" {
			t.Errorf("Stat(%s) (-want +got):\n%s", tt.path, diff)
		}
		if tt.path == "f.txt" && (!e.GetModifiedTime().AsTime().Equal(when) || e.GetOwner() != "root" || e.GetGroup() != "root") {
			t.Errorf("Stat(f.txt) = %v", e)
		}
	}
	for path, want := range map[string]connect.Code{
		dir + "/none": connect.CodeNotFound, dir + "/f.txt/x": connect.CodeInvalidArgument, "~other/x": connect.CodeInvalidArgument,
		"/a\x00b": connect.CodeInvalidArgument, "/" + strings.Repeat("x", 300): connect.CodeInvalidArgument,
	} {
		_, err := b.files.Stat(t.Context(), connect.NewRequest(&pb.StatRequest{Path: path}))
		if connect.CodeOf(err) != want {
			t.Errorf("Stat(%q) = %v, want %v", path, err, want)
		}
	}
	_, err := b.files.Stat(t.Context(), as(&pb.StatRequest{Path: "/"}, "who"))
	if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "invalid username: 'who'") {
		t.Errorf("Stat by an unknown user = %v", err)
	}
}

func TestMakeDir(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	made, err := b.files.MakeDir(t.Context(), as(&pb.MakeDirRequest{Path: b.home + "/a/b/c"}, "daemon"))
	if err != nil || made.Msg.GetEntry().GetOwner() != "daemon" || made.Msg.GetEntry().GetMode() != 0o755 {
		t.Fatalf("MakeDir() = %v, %v", made, err)
	}
	for _, p := range []string{"/a", "/a/b", "/a/b/c"} {
		var st syscall.Stat_t
		if err := syscall.Stat(b.home+p, &st); err != nil || itoa(st.Uid) != daemon.Uid || itoa(st.Gid) != daemon.Gid {
			t.Errorf("%s belongs to %d:%d, %v", p, st.Uid, st.Gid, err)
		}
	}
	write(t, b.home+"/file", "")
	for path, want := range map[string]connect.Code{
		b.home + "/a": connect.CodeAlreadyExists, b.home + "/file": connect.CodeInvalidArgument,
		b.home + "/file/x": connect.CodeInvalidArgument, "/": connect.CodeAlreadyExists,
	} {
		_, err := b.files.MakeDir(t.Context(), connect.NewRequest(&pb.MakeDirRequest{Path: path}))
		if connect.CodeOf(err) != want {
			t.Errorf("MakeDir(%s) = %v, want %v", path, err, want)
		}
	}
}

func itoa(n uint32) string { return string(appendInt(nil, n)) }

func appendInt(b []byte, n uint32) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func TestListDir(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	root := b.home + "/root"
	for _, f := range []string{"file1.txt", "subdir2/x", "subdir1/file2", "subdir1/subdir1_1/deep/y"} {
		write(t, root+"/"+f, "")
	}
	if err := os.Symlink(root, b.home+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", b.home+"/loop"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", root+"/zlink"); err != nil {
		t.Fatal(err)
	}
	list := func(path string, depth uint32) ([]string, error) {
		got, err := b.files.ListDir(t.Context(), connect.NewRequest(&pb.ListDirRequest{Path: path, Depth: depth}))
		if err != nil {
			return nil, err
		}
		names := []string{}
		for _, e := range got.Msg.GetEntries() {
			rest, ok := strings.CutPrefix(e.GetPath(), path+"/")
			if !ok {
				t.Errorf("path %s is not under %s", e.GetPath(), path)
			}
			names = append(names, rest)
		}
		return names, nil
	}
	one := []string{"file1.txt", "subdir1", "subdir2", "zlink"}
	two := []string{"file1.txt", "subdir1", "subdir1/file2", "subdir1/subdir1_1", "subdir2", "subdir2/x", "zlink"}
	all := []string{"file1.txt", "subdir1", "subdir1/file2", "subdir1/subdir1_1", "subdir1/subdir1_1/deep", "subdir1/subdir1_1/deep/y", "subdir2", "subdir2/x", "zlink"}
	for _, tt := range []struct {
		path  string
		depth uint32
		want  []string
	}{{root, 0, one}, {root, 1, one}, {root, 2, two}, {root, 100, all}, {b.home + "/link", 2, two}} {
		got, err := list(tt.path, tt.depth)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("ListDir(%s, %d): %v (-want +got):\n%s", tt.path, tt.depth, err, diff)
		}
	}
	for path, want := range map[string]connect.Code{
		root + "/file1.txt": connect.CodeInvalidArgument, b.home + "/none": connect.CodeNotFound, b.home + "/loop": connect.CodeFailedPrecondition,
	} {
		if _, err := list(path, 1); connect.CodeOf(err) != want {
			t.Errorf("ListDir(%s) = %v, want %v", path, err, want)
		}
	}
}

func TestMoveAndRemove(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := t.Context()
	write(t, b.home+"/src/a", "1")
	moved, err := b.files.Move(ctx, connect.NewRequest(&pb.MoveRequest{Source: b.home + "/src", Destination: b.home + "/new/parent/dst"}))
	if err != nil || moved.Msg.GetEntry().GetPath() != b.home+"/new/parent/dst" {
		t.Fatalf("Move() = %v, %v", moved, err)
	}
	if got, err := os.ReadFile(b.home + "/new/parent/dst/a"); err != nil || string(got) != "1" {
		t.Errorf("moved file = %q, %v", got, err)
	}
	_, err = b.files.Move(ctx, connect.NewRequest(&pb.MoveRequest{Source: b.home + "/none", Destination: b.home + "/x"}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("Move of nothing = %v", err)
	}
	for range 2 { // the second time it is missing, which is fine
		if _, err := b.files.Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: b.home + "/new"})); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	}
	if _, err := os.Lstat(b.home + "/new"); !os.IsNotExist(err) {
		t.Errorf("removed tree: %v", err)
	}
	if _, err := b.files.Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: "/"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("Remove(/) = %v", err)
	}
}

// TestMoveAcrossFileSystems needs a second file system that tests may write.
func TestMoveAcrossFileSystems(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	other, err := os.MkdirTemp("/dev/shm", "agent-test")
	if err != nil {
		t.Skipf("no second file system: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	var one, two syscall.Stat_t
	_, _ = syscall.Stat(b.home, &one), syscall.Stat(other, &two)
	if one.Dev == two.Dev {
		t.Skip("/dev/shm is not a second file system")
	}
	write(t, b.home+"/tree/sub/f", "content")
	if err := os.Chmod(b.home+"/tree/sub/f", 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/f", b.home+"/tree/l"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(b.home+"/tree/p", 0o600); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1000000000, 0)
	for _, p := range []string{"/tree/sub/f", "/tree/sub"} {
		if err := os.Chtimes(b.home+p, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: b.home + "/tree", Destination: other + "/moved"})); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(other + "/moved/sub/f")
	if err != nil || fi.Mode().Perm() != 0o640 || !fi.ModTime().Equal(when) {
		t.Errorf("moved file: %v, %v", fi, err)
	}
	if di, err := os.Stat(other + "/moved/sub"); err != nil || !di.ModTime().Equal(when) {
		t.Errorf("moved directory: %v, %v", di, err)
	}
	if l, err := os.Readlink(other + "/moved/l"); err != nil || l != "sub/f" {
		t.Errorf("moved link = %q, %v", l, err)
	}
	if _, err := os.Lstat(b.home + "/tree"); !os.IsNotExist(err) {
		t.Errorf("source: %v", err)
	}
	left, err := os.ReadDir(other)
	if err != nil || len(left) != 1 {
		t.Errorf("left at the destination: %v, %v", left, err)
	}
}

type change struct{ Name, Type string }

// collect reads events until it has seen all of want, in that order.
func collect(t *testing.T, next func() (*pb.FilesystemEvent, bool), want ...change) []*pb.FilesystemEvent {
	t.Helper()
	var seen []change
	var events []*pb.FilesystemEvent
	for i := 0; i < len(want); {
		ev, ok := next()
		if !ok {
			t.Fatalf("events ended after %v, want %v", seen, want)
		}
		c := change{ev.GetName(), strings.TrimPrefix(ev.GetType().String(), "EVENT_TYPE_")}
		seen = append(seen, c)
		if c == want[i] {
			events = append(events, ev)
			i++
		}
	}
	return events
}

func TestWatchDir(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	write(t, b.home+"/old/f", "")
	if err := os.Symlink(b.home, b.home+"-link"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	stream, err := b.files.WatchDir(ctx, connect.NewRequest(&pb.WatchDirRequest{Path: b.home + "-link", Recursive: true, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		t.Fatalf("first event = %v, %v", stream.Msg(), stream.Err())
	}
	next := func() (*pb.FilesystemEvent, bool) {
		for stream.Receive() {
			if ev := stream.Msg().GetFilesystem(); ev != nil {
				return ev, true
			}
		}
		return nil, false
	}
	write(t, b.home+"/a", "x")
	got := collect(t, next, change{"a", "CREATE"}, change{"a", "WRITE"})
	if e := got[1].GetEntry(); e.GetPath() != b.home+"-link/a" || e.GetSize() != 1 {
		t.Errorf("entry = %v", e)
	}
	if err := os.Chmod(b.home+"/a", 0o600); err != nil {
		t.Fatal(err)
	}
	collect(t, next, change{"a", "CHMOD"})
	write(t, b.home+"/old/f", "y")
	collect(t, next, change{"old/f", "WRITE"})
	write(t, b.home+"/n1/n2/g", "z") // made in one go, before the watch can follow
	collect(t, next, change{"n1", "CREATE"}, change{"n1/n2", "CREATE"}, change{"n1/n2/g", "CREATE"})
	if err := os.Rename(b.home+"/n1", b.home+"/n3"); err != nil {
		t.Fatal(err)
	}
	collect(t, next, change{"n1", "RENAME"}, change{"n3", "CREATE"}, change{"n3/n2/g", "CREATE"})
	write(t, b.home+"/n3/n2/g", "after")
	collect(t, next, change{"n3/n2/g", "WRITE"})
	if err := os.Remove(b.home + "/a"); err != nil {
		t.Fatal(err)
	}
	if ev := collect(t, next, change{"a", "REMOVE"}); ev[0].GetEntry() != nil {
		t.Errorf("a removal has an entry: %v", ev[0])
	}
}

func TestWatchErrors(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	write(t, b.home+"/f", "")
	for path, want := range map[string]connect.Code{b.home + "/f": connect.CodeInvalidArgument, b.home + "/none": connect.CodeNotFound} {
		_, err := b.files.CreateWatcher(t.Context(), connect.NewRequest(&pb.CreateWatcherRequest{Path: path}))
		if connect.CodeOf(err) != want {
			t.Errorf("CreateWatcher(%s) = %v, want %v", path, err, want)
		}
		stream, err := b.files.WatchDir(t.Context(), connect.NewRequest(&pb.WatchDirRequest{Path: path}))
		if err != nil {
			t.Fatal(err)
		}
		if stream.Receive() || connect.CodeOf(stream.Err()) != want {
			t.Errorf("WatchDir(%s) = %v, want %v", path, stream.Err(), want)
		}
		_ = stream.Close()
	}
}

func TestPollingWatcher(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	created, err := b.files.CreateWatcher(ctx, connect.NewRequest(&pb.CreateWatcherRequest{Path: b.home}))
	if err != nil {
		t.Fatal(err)
	}
	id := created.Msg.GetWatcherId()
	if len(id) != 21 || id[0] != 'w' {
		t.Errorf("watcher id = %q", id)
	}
	write(t, b.home+"/sub/inner", "") // not recursive: inner is not seen
	write(t, b.home+"/f", "x")
	var queue []*pb.FilesystemEvent
	collect(t, func() (*pb.FilesystemEvent, bool) {
		for len(queue) == 0 {
			got, err := b.files.GetWatcherEvents(ctx, connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: id}))
			if err != nil {
				t.Fatal(err)
			}
			queue = got.Msg.GetEvents()
		}
		ev := queue[0]
		queue = queue[1:]
		if strings.Contains(ev.GetName(), "/") {
			t.Errorf("event below a directory: %v", ev)
		}
		return ev, true
	}, change{"sub", "CREATE"}, change{"f", "CREATE"}, change{"f", "WRITE"})
	if _, err := b.files.RemoveWatcher(ctx, connect.NewRequest(&pb.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	_, err = b.files.GetWatcherEvents(ctx, connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: id}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("events of a removed watcher = %v", err)
	}
	_, err = b.files.RemoveWatcher(ctx, connect.NewRequest(&pb.RemoveWatcherRequest{WatcherId: id}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("second RemoveWatcher = %v", err)
	}
}
