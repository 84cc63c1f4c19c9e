package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/caisson-dev/caisson/client"
)

// upTree copies a local directory to remote through tar.
func (t transfer) upTree(ctx context.Context, local, remote string) error {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(t.pack(ctx, local, pw)) }()
	defer pr.Close()
	errs := &limited{max: 4096}
	exit, err := t.s.run(ctx, job{
		agent: t.agent,
		cmd: client.Command{Path: "/bin/sh", Args: []string{
			"-c", `mkdir -p -- "$1" && exec tar -x --no-same-owner -f - -C "$1"`, "sh", remote,
		}},
		stdin: pr, stdout: io.Discard, stderr: errs,
	})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("copy to %s: tar in the sandbox: %s: %s", remote, exit.Status, strings.TrimSpace(errs.String()))
	}
	return nil
}

// pack writes a directory as a tar stream with names relative to it.
func (t transfer) pack(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return t.packOne(tw, root, name, d)
	})
	return errors.Join(err, tw.Close())
}

func (t transfer) packOne(tw *tar.Writer, root *os.Root, name string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	case !st.Mode().IsRegular() && !st.IsDir():
		t.s.say("warning: %s is neither file nor directory and was left out\n", name)
		return nil
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(name)
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	if err := tw.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// downTree copies a directory of the sandbox to local through tar.
func (t transfer) downTree(ctx context.Context, remote, local string) error {
	if err := os.MkdirAll(local, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(local)
	if err != nil {
		return err
	}
	defer root.Close()
	pr, pw := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := t.unpack(pr, root)
		pr.CloseWithError(err)
		unpacked <- err
	}()
	errs := &limited{max: 4096}
	exit, err := t.s.run(ctx, job{
		agent: t.agent, cmd: client.Command{Path: "tar", Args: []string{"-c", "-f", "-", "-C", remote, "."}},
		stdout: pw, stderr: errs,
	})
	pw.Close()
	if uerr := <-unpacked; uerr != nil {
		return fmt.Errorf("copy from %s: %w", remote, uerr)
	}
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("copy from %s: tar in the sandbox: %s: %s", remote, exit.Status, strings.TrimSpace(errs.String()))
	}
	return nil
}

// maxEntries bounds what a tar stream of a sandbox may create here.
const maxEntries = 1 << 20

// unpack reads a tar stream, which the sandbox made and nobody trusts, into
// root. Nothing outside root is touched: names must be local, and links that
// lead outside are left out.
func (t transfer) unpack(r io.Reader, root *os.Root) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// What follows the end mark is padding.
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if n >= maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		name := path.Clean(h.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("the archive names a path outside the directory: %q", h.Name)
		}
		if err := t.unpackOne(tr, root, name, h); err != nil {
			return err
		}
	}
}

func (t transfer) unpackOne(tr *tar.Reader, root *os.Root, name string, h *tar.Header) error {
	mode := fs.FileMode(h.Mode) & 0o777
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
		return writeEntry(tr, root, name, mode)
	case tar.TypeSymlink:
		if !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) || path.IsAbs(h.Linkname) {
			break
		}
		_ = root.Remove(name)
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		_ = root.Remove(name)
		return root.Link(path.Clean(h.Linkname), name)
	}
	t.s.say("warning: %s was left out: it is a device, or a link that leads outside\n", name)
	return nil
}

func writeEntry(tr *tar.Reader, root *os.Root, name string, mode fs.FileMode) error {
	// Replaced, never written through: what is there may be a link.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, tr)
	return errors.Join(err, f.Close())
}
