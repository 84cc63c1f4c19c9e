package metadata

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// maxRecords bounds the sidecar; the oldest knowledge is not worth more memory.
const maxRecords = 65536

// sidecar maps paths to metadata. A record also knows which file it was made
// for, so that it follows that file when a command moves it and is not taken
// for that of another file which took its name.
type sidecar struct {
	file string

	mu      sync.Mutex // guards what follows, and the file
	records map[string]record
	byID    map[fileID]string // path of the record
}

type fileID struct{ Dev, Ino uint64 }

type record struct {
	ID       fileID            `json:"id"`
	Metadata map[string]string `json:"metadata"`
}

func newSidecar(file string) *sidecar {
	return &sidecar{file: file, records: make(map[string]record), byID: make(map[fileID]string)}
}

// adopt loads the file of an earlier run. Inode numbers may be others by now,
// so records are taken by path; apply moves one into the file system.
func (s *sidecar) adopt(apply func(path string, m map[string]string) error) {
	if s.file == "" {
		return
	}
	b, err := os.ReadFile(s.file)
	if err != nil {
		return
	}
	var saved map[string]record
	if json.Unmarshal(b, &saved) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, r := range saved {
		id, ok := identify(path)
		if !ok || apply(path, r.Metadata) == nil {
			continue
		}
		s.put(path, record{ID: id, Metadata: r.Metadata})
	}
	s.save()
}

// get returns the metadata of the file at path, nil for none.
func (s *sidecar) get(path string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 {
		return nil
	}
	id, ok := identify(path)
	if !ok {
		return nil
	}
	if r, ok := s.records[path]; ok && r.ID == id {
		return maps.Clone(r.Metadata)
	}
	old, ok := s.byID[id]
	if !ok {
		return nil
	}
	r := s.records[old]
	if now, exists := identify(old); !exists || now != id {
		// A command moved it.
		s.drop(old)
		s.put(path, r)
		s.save()
	}
	return maps.Clone(r.Metadata)
}

// set replaces the record of path; empty metadata removes it.
func (s *sidecar) set(path string, m map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(m) == 0 {
		if id, ok := identify(path); ok {
			if other, ok := s.byID[id]; ok {
				s.drop(other)
				s.save()
			}
		}
		if _, ok := s.records[path]; ok {
			s.drop(path)
			s.save()
		}
		return
	}
	id, ok := identify(path)
	if !ok {
		return
	}
	s.put(path, record{ID: id, Metadata: maps.Clone(m)})
	s.save()
}

func (s *sidecar) moved(from, to string) {
	s.rewrite(from, func(rest string) string { return to + rest })
}

func (s *sidecar) removed(path string) {
	s.rewrite(path, func(string) string { return "" })
}

// rewrite gives the records at and below path the name that rename returns for
// the rest of their path, or drops them when that is empty.
func (s *sidecar) rewrite(path string, rename func(rest string) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for old, r := range maps.Clone(s.records) {
		rest, ok := strings.CutPrefix(old, path)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		changed = true
		s.drop(old)
		name := rename(rest)
		if name == "" {
			continue
		}
		// Across file systems the file is a new one.
		if id, ok := identify(name); ok {
			s.put(name, record{ID: id, Metadata: r.Metadata})
		}
	}
	if changed {
		s.save()
	}
}

// put and drop keep both maps in step. The caller holds mu.
func (s *sidecar) put(path string, r record) {
	if len(s.records) >= maxRecords {
		for p := range s.records {
			s.drop(p)
			break
		}
	}
	s.drop(path)
	s.records[path] = r
	s.byID[r.ID] = path
}

func (s *sidecar) drop(path string) {
	r, ok := s.records[path]
	if !ok {
		return
	}
	delete(s.records, path)
	if s.byID[r.ID] == path {
		delete(s.byID, r.ID)
	}
}

// save writes the file anew, or removes it when there is nothing to keep. A
// failure loses only what a restart of the agent would have kept. The caller
// holds mu.
func (s *sidecar) save() {
	if s.file == "" {
		return
	}
	if len(s.records) == 0 {
		_ = os.Remove(s.file)
		return
	}
	b, err := json.Marshal(s.records)
	if err != nil || os.MkdirAll(filepath.Dir(s.file), 0o700) != nil {
		return
	}
	temp := s.file + ".new"
	if os.WriteFile(temp, b, 0o600) == nil {
		_ = os.Rename(temp, s.file)
	}
}

func identify(path string) (fileID, bool) {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return fileID{}, false
	}
	return fileID{Dev: st.Dev, Ino: st.Ino}, true
}
