// Package erofs writes root filesystems as EROFS images, the read-only
// filesystem of Linux that gVisor serves without a helper process. It takes tar
// streams and files from memory; nothing is ever unpacked on the host.
//
// The images use the part of the format that gVisor's reader knows: 4 KiB
// blocks, no compression, extended inodes, no extended attributes (gVisor
// refuses an inode that has any). File data goes straight to the output file
// while the input is read; only the tree of inodes is kept in memory.
// The same input gives the same bytes.
//
// Layout of a file: block 0 holds the superblock, then come the data of regular
// files, then the inodes with short directories and symbolic links beside them,
// then the blocks of long directories.
//
// Not here: storing and naming images (package image), what goes into a
// template (package template). Imports nothing of this module.
package erofs

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// BlockSize is the size of a block in bytes.
const BlockSize = 4096

// MaxName is the longest name of a directory entry in bytes.
const MaxName = 255

// Limits bound what an image may hold. A zero field means the default.
type Limits struct {
	// Entries caps archive entries, and inodes, each. Default 2,000,000.
	Entries int
	// Bytes caps file data, counted in whole blocks and with data that a later
	// entry replaced. Default 64 GiB.
	Bytes int64
	// PathBytes caps the length of a path and of a link's target. Default 4095,
	// which is also the most.
	PathBytes int
	// Depth caps nested directories. Default 255.
	Depth int
	// Ratio caps how many times larger a compressed archive may become.
	// Default 200; the first 64 MiB are exempt.
	Ratio int64
}

func (l Limits) withDefaults() Limits {
	if l.Entries <= 0 {
		l.Entries = 2_000_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 64 << 30
	}
	if l.PathBytes <= 0 || l.PathBytes > maxTarget {
		l.PathBytes = maxTarget
	}
	if l.Depth <= 0 {
		l.Depth = 255
	}
	if l.Ratio <= 0 {
		l.Ratio = 200
	}
	return l
}

// DevicePolicy says what to do with device nodes in an archive.
type DevicePolicy int

// The policies for device nodes.
const (
	// RefuseDevices makes a device node an error.
	RefuseDevices DevicePolicy = iota
	// DropDevices leaves device nodes out and warns.
	DropDevices
	// KeepDevices writes them as they are.
	KeepDevices
)

// Options control what a Writer accepts. The zero value is strict.
type Options struct {
	Limits  Limits
	Devices DevicePolicy
	// Whiteouts makes AddTar read names that begin with ".wh." as OCI layers
	// mean them: as the removal of what earlier archives put there.
	Whiteouts bool
	// Overlay makes AddTar read an archive as the upper directory of an overlay:
	// a character device 0/0 removes what is below it, and a directory with the
	// attribute overlay.opaque all that was in it. With either of the two an
	// archive may be empty.
	Overlay bool
	// Exclude, when set, is asked for every archive entry with its cleaned path
	// (no leading slash); true leaves the entry out. Directories that are left
	// out still appear, with default metadata, when something in them stays.
	Exclude func(path string) bool
	// BuildTime is recorded in the superblock; the zero time is recorded as
	// the epoch.
	BuildTime time.Time
}

// Stats tell what was written.
type Stats struct {
	Files, Dirs, Symlinks, Others int
	// DataBytes is the sum of the lengths of all regular files, each inode once.
	DataBytes int64
	// ImageBytes is the length of the image.
	ImageBytes int64
	// Warnings name what an image cannot hold and was dropped, such as file
	// capabilities. At most 100 are kept.
	Warnings []string
}

// File is one entry made in memory.
type File struct {
	// Path is where it goes; leading slashes are ignored, parents are made.
	Path string
	// Mode holds the permission bits, set-uid, set-gid, sticky, and the type:
	// regular, directory, symbolic link or named pipe.
	Mode     fs.FileMode
	UID, GID uint32
	ModTime  time.Time
	// Data is the content of a regular file. When Reader is set, Size bytes of
	// it are taken instead.
	Data   []byte
	Reader io.Reader
	Size   int64
	// Target is where a symbolic link points.
	Target string
}

// Build writes an image of files to out, which is truncated first. A later
// entry replaces an earlier one of the same path.
func Build(out *os.File, files []File) (Stats, error) {
	w, err := NewWriter(out, Options{})
	if err != nil {
		return Stats{}, err
	}
	for _, f := range files {
		if err := w.Add(f); err != nil {
			return Stats{}, err
		}
	}
	return w.Finish()
}

// FromTar writes an image of the tar stream r to out, which is truncated first.
// The stream may be plain, gzip or zstd. A hostile or damaged archive gives
// errdefs.ErrInvalidArgument, one beyond a limit errdefs.ErrResourceExhausted;
// out is then of no use.
func FromTar(ctx context.Context, r io.Reader, out *os.File, opts Options) (Stats, error) {
	w, err := NewWriter(out, opts)
	if err != nil {
		return Stats{}, err
	}
	if err := w.AddTar(ctx, r); err != nil {
		return Stats{}, fmt.Errorf("read archive: %w", err)
	}
	return w.Finish()
}
