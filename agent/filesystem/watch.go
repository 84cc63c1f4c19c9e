package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// maxSynthetic bounds the memory of entries that were announced by a walk.
const maxSynthetic = 4096

// watch observes one directory, or a tree.
type watch struct {
	svc       *Service
	root      string // as the client named it
	actual    string // with links resolved
	recursive bool
	entries   bool
	notify    *fsnotify.Watcher
	dirs      map[string]bool
	// synthetic holds what a walk of a new directory announced; the
	// notification of the same creation may still come.
	synthetic map[string]bool
}

type watchOptions struct {
	recursive, entries, networkMounts bool
}

// newWatch arms a watch on root. The error has a code.
func (s *Service) newWatch(root string, o watchOptions) (*watch, error) {
	actual, err := realDir(root)
	if err != nil {
		return nil, wireError(root, err)
	}
	if !o.networkMounts && onNetwork(actual) {
		return nil, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("'%s' is on a network file system, where changes made elsewhere are not seen", root))
	}
	notify, err := fsnotify.NewBufferedWatcher(256)
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("watch '%s': %w", root, err))
	}
	w := &watch{
		svc: s, root: root, actual: actual, recursive: o.recursive, entries: o.entries, notify: notify,
		dirs: make(map[string]bool), synthetic: make(map[string]bool),
	}
	if err := w.add(actual, nil); err != nil {
		_ = notify.Close()
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EMFILE) {
			return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("watch '%s': %w", root, err))
		}
		return nil, wireError(root, err)
	}
	return w, nil
}

// run calls emit for every event until ctx ends or emit or the watch fails.
func (w *watch) run(ctx context.Context, emit func(*pb.FilesystemEvent) error) error {
	for {
		select {
		case ev, ok := <-w.notify.Events:
			if !ok {
				return errors.New("watch has ended")
			}
			if err := w.handle(ev, emit); err != nil {
				return err
			}
		case err, ok := <-w.notify.Errors:
			if !ok {
				return errors.New("watch has ended")
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				return connect.NewError(connect.CodeResourceExhausted, errors.New("too many changes at once, some were lost"))
			}
			return connect.NewError(connect.CodeInternal, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *watch) close() { _ = w.notify.Close() }

// add watches dir, and in recursive mode all below it. found is called for what
// lies below.
func (w *watch) add(dir string, found func(path string) error) error {
	if err := w.notify.Add(dir); err != nil {
		return err
	}
	w.dirs[dir] = true
	if !w.recursive {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if path == dir {
			return err
		}
		if err != nil {
			return nil // gone again
		}
		if d.IsDir() {
			err := w.notify.Add(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			w.dirs[path] = true
		}
		if found != nil {
			return found(path)
		}
		return nil
	})
}

// operations in the order in which one notification's bits are told.
var operations = []struct {
	op    fsnotify.Op
	event pb.EventType
}{
	{fsnotify.Create, pb.EventType_EVENT_TYPE_CREATE},
	{fsnotify.Rename, pb.EventType_EVENT_TYPE_RENAME},
	{fsnotify.Chmod, pb.EventType_EVENT_TYPE_CHMOD},
	{fsnotify.Write, pb.EventType_EVENT_TYPE_WRITE},
	{fsnotify.Remove, pb.EventType_EVENT_TYPE_REMOVE},
}

func (w *watch) handle(ev fsnotify.Event, emit func(*pb.FilesystemEvent) error) error {
	for _, o := range operations {
		if !ev.Has(o.op) {
			continue
		}
		if o.op == fsnotify.Create && w.synthetic[ev.Name] {
			delete(w.synthetic, ev.Name)
			continue
		}
		if err := emit(w.event(ev.Name, o.event)); err != nil {
			return err
		}
	}
	if !w.recursive {
		return nil
	}
	if ev.Has(fsnotify.Rename) || ev.Has(fsnotify.Remove) {
		w.forget(ev.Name)
	}
	if ev.Has(fsnotify.Create) {
		return w.adopt(ev.Name, emit)
	}
	return nil
}

// adopt watches a new directory and announces what was put into it before.
func (w *watch) adopt(path string, emit func(*pb.FilesystemEvent) error) error {
	fi, err := os.Lstat(path)
	if err != nil || !fi.IsDir() || w.dirs[path] {
		return nil
	}
	err = w.add(path, func(found string) error {
		if len(w.synthetic) >= maxSynthetic {
			clear(w.synthetic)
		}
		w.synthetic[found] = true
		return emit(w.event(found, pb.EventType_EVENT_TYPE_CREATE))
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("watch '%s': %w", path, err))
	}
	return err
}

// forget drops the watches at and below a directory that has left its name.
func (w *watch) forget(path string) {
	delete(w.synthetic, path)
	if !w.dirs[path] || path == w.actual {
		return
	}
	for dir := range w.dirs {
		if dir == path || strings.HasPrefix(dir, path+"/") {
			delete(w.dirs, dir)
			_ = w.notify.Remove(dir) // already gone for a removed one
		}
	}
}

func (w *watch) event(path string, t pb.EventType) *pb.FilesystemEvent {
	name, err := filepath.Rel(w.actual, path)
	if err != nil {
		name = filepath.Base(path)
	}
	ev := &pb.FilesystemEvent{Name: wireText(name), Type: t}
	if !w.entries || t == pb.EventType_EVENT_TYPE_REMOVE || t == pb.EventType_EVENT_TYPE_RENAME {
		return ev
	}
	if e, err := w.svc.entry(path); err == nil {
		e.Path = wireText(filepath.Join(w.root, name))
		ev.Entry = e
	}
	return ev
}

// networkMagic are the statfs types of NFS, CIFS, SMB, SMB2 and FUSE.
var networkMagic = map[uint32]bool{0x6969: true, 0xFF534D42: true, 0x517B: true, 0xFE534D42: true, 0x65735546: true}

func onNetwork(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && networkMagic[uint32(st.Type)]
}
