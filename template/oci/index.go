package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template/builder"
)

// indexVersion changes when the same image would become another root filesystem.
const indexVersion = 2

// found is a root filesystem that was made of an image before.
type found struct {
	Version int `json:"version"`
	// Where is the repository, or the file, that the image was taken from: who may
	// read one of the same digest elsewhere may not read this one.
	Where    string            `json:"where"`
	Manifest string            `json:"manifest"` // the digest
	Rootfs   string            `json:"rootfs"`
	Env      map[string]string `json:"env,omitempty"`
	Family   string            `json:"family,omitempty"`
	Missing  []string          `json:"missing,omitempty"`
}

func (f found) base(ref string, r image.Rootfs) builder.Base {
	return builder.Base{
		Rootfs: r, Name: ref + "@" + f.Manifest, User: "user", Env: f.Env, Family: f.Family, Missing: f.Missing,
	}
}

// index keeps what was found in files named by where it was and the digest of its
// manifest.
type index struct{ dir string }

func newIndex(dir string) (*index, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &index{dir}, nil
}

func (x *index) path(where, manifest string) string {
	sum := sha256.Sum256([]byte(where + "\n" + manifest))
	return filepath.Join(x.dir, hex.EncodeToString(sum[:])+".json")
}

// load returns what is known of a manifest, which counts as a use.
func (x *index) load(where, manifest string) (found, bool) {
	path := x.path(where, manifest)
	f, err := readFound(path)
	if err != nil || f.Version != indexVersion || f.Manifest != manifest || f.Where != where {
		return found{}, false
	}
	now := time.Now()
	return f, os.Chtimes(path, now, now) == nil
}

func readFound(path string) (found, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return found{}, err
	}
	var f found
	return f, json.Unmarshal(b, &f)
}

func (x *index) save(f found) error {
	f.Version = indexVersion
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("index image: %w", err)
	}
	tmp, err := os.CreateTemp(x.dir, ".new-*")
	if err != nil {
		return fmt.Errorf("index image: %w", err)
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), x.path(f.Where, f.Manifest))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("index image: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// KeepImages returns the digests of the root filesystems in a puller's directory
// that were asked for less than keep ago; they are not to be collected. What is
// older is forgotten. A missing directory has none.
func KeepImages(ctx context.Context, dir string, keep time.Duration) ([]string, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var digests []string
	for _, n := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		path := filepath.Join(dir, n.Name())
		fi, err := n.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		f, err := readFound(path)
		if strings.HasSuffix(n.Name(), ".json") && err == nil && time.Since(fi.ModTime()) < keep {
			digests = append(digests, f.Rootfs)
			continue
		}
		if time.Since(fi.ModTime()) < time.Minute {
			continue // being written
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("forget image: %w", err)
		}
	}
	return digests, nil
}
