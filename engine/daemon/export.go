package daemon

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/caisson-dev/caisson/engine/wire"
)

// What a saved tree says of a regular file: its length, then where its parts lie
// in the file behind the writable layer.
const (
	savedSize    = 8
	savedSegment = 24
	// maxSegments bounds one file of a tree, so that a sentry cannot make the
	// engine hold more.
	maxSegments = 1 << 22
)

// exportLayer writes the writable layer as a tar stream, deletions as character
// devices 0/0. The sentry tells the tree alone, while the guest stands still; the
// content comes from the file behind the layer, so that no file of any size
// passes through the sentry's memory.
func (b *box) exportLayer(ctx context.Context, files []*os.File) error {
	if len(files) != 1 {
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("export takes 1 file, got %d", len(files))}
	}
	layer, err := b.contents(ctx)
	if err != nil {
		return fmt.Errorf("export layer: %w", err)
	}
	defer layer.Close()
	tree, err := b.tree(ctx)
	if err != nil {
		return fmt.Errorf("export layer: %w", err)
	}
	defer tree.Close()
	if err := writeLayer(files[0], tree, layer); err != nil {
		return fmt.Errorf("export layer: %w", err)
	}
	return nil
}

// contents returns the file behind the layer once all is in it that the box
// began with.
func (b *box) contents(ctx context.Context) (*os.File, error) {
	b.mu.Lock()
	restored, layer := b.restored, b.layer
	var err error
	if layer != nil {
		layer, err = dup(layer)
	}
	b.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case layer == nil:
		return nil, &wire.Error{Code: wire.CodePrecondition, Message: "the box has no writable layer"}
	case restored:
		// Its pages may still be on their way.
		err = call(ctx, b, boot.ContMgrWaitRestore, nil, nil)
	case b.request.FilesFrom != "":
		err = call(ctx, b, boot.ContMgrWaitFSRestore, &boot.WaitFSRestoreArgs{CID: b.name}, nil)
	}
	if err != nil {
		return nil, errors.Join(err, layer.Close())
	}
	return layer, nil
}

// tree has the sentry save its tree without the content of files.
func (b *box) tree(ctx context.Context) (*os.File, error) {
	fd, err := unix.MemfdCreate("tree", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	tree := os.NewFile(uintptr(fd), "tree")
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	defer null.Close()
	err = call(ctx, b, boot.ContMgrFSSave, &boot.FSSaveArgs{
		FilePayload: urpc.FilePayload{Files: []*os.File{null, tree, null, null}}, Path: "/",
	}, nil)
	if err == nil {
		_, err = tree.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return tree, nil
}

// writeLayer copies a saved tree as a tar stream, with the content of its files.
func writeLayer(w io.Writer, tree io.Reader, layer io.ReaderAt) error {
	tr, tw := tar.NewReader(tree), tar.NewWriter(w)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tw.Close()
		}
		if err != nil {
			return fmt.Errorf("read tree: %w", err)
		}
		var content io.Reader
		if h.Typeflag == tar.TypeReg {
			if content, h.Size, err = fileContent(h.Size, tr, layer); err != nil {
				return fmt.Errorf("%q: %w", h.Name, err)
			}
		}
		// Written in whatever form fits the new size.
		h.Format = tar.FormatUnknown
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
		if content == nil {
			continue
		}
		if _, err := io.Copy(tw, content); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// fileContent reads what a tree says of one file and returns its content, which
// has exactly size bytes.
func fileContent(length int64, tr io.Reader, layer io.ReaderAt) (content io.Reader, size int64, err error) {
	segments := (length - savedSize) / savedSegment
	if length < savedSize || (length-savedSize)%savedSegment != 0 || segments > maxSegments {
		return nil, 0, fmt.Errorf("record of %d bytes", length)
	}
	record := make([]byte, length)
	if _, err := io.ReadFull(tr, record); err != nil {
		return nil, 0, err
	}
	size = int64(binary.LittleEndian.Uint64(record))
	at := int64(0)
	for rest := record[savedSize:]; len(rest) > 0; rest = rest[savedSegment:] {
		start, end, from := segment(rest)
		if start < at || end < start || from < 0 || size < 0 {
			return nil, 0, errors.New("its parts are out of order")
		}
		at = end
	}
	return io.LimitReader(&parts{rest: record[savedSize:], layer: layer}, size), size, nil
}

// segment is one part of a file: where it begins and ends, and where it lies in
// the layer.
func segment(record []byte) (start, end, from int64) {
	le := binary.LittleEndian
	return int64(le.Uint64(record)), int64(le.Uint64(record[8:])), int64(le.Uint64(record[16:]))
}

// parts reads a file of which the record says where its parts lie, with zeros in
// between and behind. It makes nothing of a part before its turn: there may be
// millions.
type parts struct {
	rest  []byte // of the record
	layer io.ReaderAt
	at    int64
	now   io.Reader // up to at; nil for none
}

// Read implements io.Reader. It never ends.
func (p *parts) Read(b []byte) (int, error) {
	for {
		if p.now != nil {
			// What a part is made of says that it ends when nothing is left of it.
			if n, err := p.now.Read(b); !errors.Is(err, io.EOF) {
				return n, err
			}
			p.now = nil
		}
		if len(p.rest) == 0 {
			return zeros{}.Read(b)
		}
		start, end, from := segment(p.rest)
		if p.at < start {
			p.now, p.at = io.LimitReader(zeros{}, start-p.at), start
			continue
		}
		p.now, p.at, p.rest = section(p.layer, from, end-start), end, p.rest[savedSegment:]
	}
}

// section reads n bytes; what lies behind the end of the file is zeros, as in a
// page that was never written.
func section(r io.ReaderAt, from, n int64) io.Reader {
	return io.LimitReader(io.MultiReader(io.NewSectionReader(r, from, n), zeros{}), n)
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
