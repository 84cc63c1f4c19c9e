package builder

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

const (
	// cacheVersion changes when the same steps would give something else.
	cacheVersion = 1
	// collectAge keeps the collection away from what a build has just made.
	collectAge = 10 * time.Minute
	entryName  = ".json"
	// maxEntry bounds an entry that is read.
	maxEntry = 1 << 20
)

// key is the address of what a chain of steps makes: hex digits.
type key string

// baseKey begins a chain. It is the team's own: the hash of a COPY step's files
// is what a client says, so one team could have another's builds take its files,
// or take theirs.
func baseKey(team identity.TeamID, b Base) key {
	return hashOf(struct {
		Version int
		Team    identity.TeamID
		Rootfs  string
		State   state
	}{cacheVersion, team, b.Rootfs.Digest, stateOf(b)})
}

// next is the key after one more step. What user, directory and environment were
// before it follows from the chain.
func (k key) next(s template.Step) key {
	return hashOf(struct {
		Parent    key
		Type      string
		Args      []string
		FilesHash string
	}{k, s.Type, s.Args, s.FilesHash})
}

func hashOf(v any) key {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and maps of them only
	}
	sum := sha256.Sum256(b)
	return key(hex.EncodeToString(sum[:]))
}

// entry is what one step left.
type entry struct {
	// Base is the image that Layer lies on; no Layer means that nothing of it was
	// changed.
	Base  string             `json:"base"`
	Layer *snapshot.Artifact `json:"layer,omitempty"`
	State state              `json:"state"`
	// Rootfs is the image of Base and Layer together, where one was made.
	Rootfs string `json:"rootfs,omitempty"`
}

// cache keeps entries as files named by their keys. Environments may hold
// secrets, so only the server may read them.
type cache struct {
	dir    string
	limits Limits
}

func newCache(dir string, l Limits) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &cache{dir: dir, limits: l}, nil
}

func (c *cache) path(k key) string { return filepath.Join(c.dir, string(k)+entryName) }

// load returns the entry of a key, which counts as a use.
func (c *cache) load(k key) (entry, bool) {
	e, err := readEntry(c.path(k))
	if err != nil {
		return entry{}, false
	}
	now := time.Now()
	if err := os.Chtimes(c.path(k), now, now); err != nil {
		return entry{}, false
	}
	return e, true
}

func readEntry(path string) (entry, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return entry{}, err
	}
	if fi.Size() > maxEntry {
		return entry{}, fmt.Errorf("%s has %d bytes", path, fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return entry{}, err
	}
	var e entry
	return e, json.Unmarshal(b, &e)
}

// save writes an entry in one step. What it refers to is on the disk before.
func (c *cache) save(k key, e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("cache step: %w", err)
	}
	if len(b) > maxEntry {
		return nil // an environment that large is not worth it
	}
	f, err := os.CreateTemp(c.dir, ".new-*")
	if err != nil {
		return fmt.Errorf("cache step: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path(k))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cache step: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// drop removes an entry, if it is there.
func (c *cache) drop(k key) error {
	if err := os.Remove(c.path(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// used is one entry with when it was used last.
type used struct {
	path string
	at   time.Time
	entry
}

// list returns all entries, the last used first, and removes what a process that
// died left half written.
func (c *cache) list() ([]used, error) {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var all []used
	for _, n := range names {
		path := filepath.Join(c.dir, n.Name())
		fi, err := n.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e, err := readEntry(path)
		if strings.HasSuffix(n.Name(), entryName) && err == nil {
			all = append(all, used{path, fi.ModTime(), e})
		} else if time.Since(fi.ModTime()) > collectAge {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	slices.SortFunc(all, func(a, b used) int { return cmp.Or(b.at.Compare(a.at), strings.Compare(a.path, b.path)) })
	return all, nil
}

// images returns the digests that entries refer to.
func (c *cache) images() ([]string, error) {
	all, err := c.list()
	if err != nil {
		return nil, fmt.Errorf("list build cache: %w", err)
	}
	digests := map[string]bool{}
	for _, u := range all {
		digests[u.Base] = true
		digests[u.Rootfs] = true
	}
	delete(digests, "")
	return slices.Sorted(maps.Keys(digests)), nil
}

// collect drops entries beyond the limits and returns the layers of the others.
func (c *cache) collect() (map[snapshot.ID]bool, error) {
	all, err := c.list()
	if err != nil {
		return nil, err
	}
	layers := map[snapshot.ID]bool{}
	var sum int64
	full := false
	for _, u := range all {
		age := time.Since(u.at)
		add := int64(0)
		if u.Layer != nil && !layers[u.Layer.ID] {
			add = u.Layer.SizeBytes
		}
		// Once one did not fit, older ones go too: they are the later steps' parents
		// less often than those of chains that nobody builds any more.
		full = full || sum+add > c.limits.CacheBytes
		if age > collectAge && (full || age > c.limits.CacheAge) {
			if err := os.Remove(u.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		sum += add
		if u.Layer != nil {
			layers[u.Layer.ID] = true
		}
	}
	return layers, nil
}
