package snapshot

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
)

// Local keeps artifacts in one directory of this machine, each in a directory
// of its own named by its id. Safe for concurrent use on different ids.
type Local struct{ root string }

var _ Vault = (*Local)(nil)

var idForm = regexp.MustCompile(`^[a-z0-9]{1,64}$`)

// manifestName is the first entry of an exported artifact.
const manifestName = "artifact.json"

// NewLocal returns a vault in dir, which is made (mode 0700) if absent.
func NewLocal(dir string) (*Local, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make snapshot directory: %w", err)
	}
	return &Local{root: dir}, nil
}

func (l *Local) path(id ID) (string, error) {
	if !idForm.MatchString(string(id)) {
		return "", fmt.Errorf("snapshot id %q is not 1 to 64 of [a-z0-9]: %w", id, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(l.root, string(id)), nil
}

// Dir implements Vault.
func (l *Local) Dir(_ context.Context, id ID) (string, error) {
	dir, err := l.path(id)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make directory of snapshot %s: %w", id, err)
	}
	return dir, nil
}

// Has reports whether there is a directory of id.
func (l *Local) Has(id ID) bool {
	dir, err := l.path(id)
	if err != nil {
		return false
	}
	fi, err := os.Stat(dir)
	return err == nil && fi.IsDir()
}

// List implements Vault.
func (l *Local) List(context.Context) ([]Stored, error) {
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []Stored
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		if e.IsDir() && idForm.MatchString(e.Name()) {
			all = append(all, Stored{ID: ID(e.Name()), ChangedAt: fi.ModTime()})
		}
	}
	return all, nil
}

// Sync implements Vault.
func (l *Local) Sync(_ context.Context, id ID) error {
	dir, err := l.path(id)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sync snapshot %s: %w", id, err)
	}
	paths := []string{l.root, dir}
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	for _, p := range paths {
		if err := syncPath(p); err != nil {
			return fmt.Errorf("sync snapshot %s: %w", id, err)
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Delete implements Vault.
func (l *Local) Delete(_ context.Context, id ID) error {
	dir, err := l.path(id)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}

// Export implements Vault: a tar stream of plain files, the manifest first.
func (l *Local) Export(_ context.Context, a Artifact, w io.Writer) error {
	dir, err := l.path(a.ID)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("export snapshot %s: %w", a.ID, err)
	}
	manifest, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("export snapshot %s: %w", a.ID, err)
	}
	t := tar.NewWriter(w)
	err = t.WriteHeader(&tar.Header{Name: manifestName, Mode: 0o600, Size: int64(len(manifest))})
	if err == nil {
		_, err = t.Write(manifest)
	}
	for _, e := range entries {
		if err == nil {
			err = exportFile(t, dir, e.Name())
		}
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return fmt.Errorf("export snapshot %s: %w", a.ID, err)
	}
	return nil
}

func exportFile(t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: fi.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
