// Package storetest is the suite that package store passes on every database
// engine, and helpers that give tests a database. Only tests import it.
package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
)

// TemplateID is the public template that Fill adds.
const TemplateID template.ID = "tmpl0000000000000000"

// SQLite returns a filled store in a file of its own.
func SQLite(t testing.TB) *store.Store {
	t.Helper()
	empty, err := migrated()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "caisson.db")
	if err := os.WriteFile(path, empty, 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(t, path)
}

// migrated is an empty database file: migrating it once and copying it saves
// most of the time of a test.
var migrated = sync.OnceValues(func() (_ []byte, err error) {
	dir, err := os.MkdirTemp("", "storetest-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "caisson.db")
	s, err := store.Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil { // also moves the WAL into the file
		return nil, err
	}
	return os.ReadFile(path)
})

// Open returns the filled store that dsn names, closed when the test ends.
func Open(t testing.TB, dsn string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	Fill(t, s)
	return s
}

// Fill adds the team "other" and the template "base".
func Fill(t testing.TB, s *store.Store) {
	t.Helper()
	if _, err := s.EnsureTeam(t.Context(), identity.Team{ID: "other", Name: "Other", CreatedAt: now()}); err != nil {
		t.Fatalf("EnsureTeam() = %v", err)
	}
	if err := s.PutTemplate(t.Context(), Template(), Build()); err != nil {
		t.Fatalf("PutTemplate() = %v", err)
	}
}

// Template returns the template that Fill adds.
func Template() template.Template {
	return template.Template{
		ID: TemplateID, Team: identity.DefaultTeam, Names: []string{"base"}, Public: true,
		CreatedAt: time.UnixMilli(1_700_000_000_000).UTC(), UpdatedAt: time.UnixMilli(1_700_000_000_000).UTC(),
	}
}

// Build returns the ready build of Template.
func Build() template.Build {
	at := time.UnixMilli(1_700_000_000_000).UTC()
	return template.Build{
		ID: "0b8e5c1e-0000-4000-8000-000000000001", Template: TemplateID, Status: template.Ready, Source: "tar",
		Rootfs:    image.Rootfs{Digest: "sha256:" + strings.Repeat("ab", 32), Path: "/images/base", SizeBytes: 123},
		Resources: provider.Resources{MemoryMiB: 512, CPUs: 1}, User: "user", Workdir: "/home/user",
		Env: map[string]string{"LANG": "C.UTF-8"}, CreatedAt: at, FinishedAt: at,
	}
}

// Sandbox returns a Pending record with every field set.
func Sandbox() sandbox.Sandbox {
	deny := false
	return sandbox.Sandbox{
		ID: sandbox.ID("i" + strings.ToLower(rand.Text())[:20]), Team: identity.DefaultTeam, Template: TemplateID,
		Alias: "base", Name: "a name", Build: Build().ID, State: sandbox.Pending, Node: "node1",
		Network:   sandbox.Network{AllowInternet: &deny, AllowOut: []string{"pypi.org"}, DenyOut: []string{"0.0.0.0/0"}, PrivateTraffic: true},
		Egress:    egress.Policy{Version: 1, Default: egress.Deny, Rules: []egress.Rule{{Hosts: []string{"pypi.org"}, Ports: []uint16{443}, Verdict: egress.Allow, Note: "allowOut"}}},
		Resources: provider.Resources{MemoryMiB: 512, CPUs: 2, DiskMiB: 1024, Processes: 64},
		Metadata:  map[string]string{"user": "ä\x00&=", "k": "v"},
		CreatedAt: now(), EndsAt: now().Add(time.Minute), OnTimeout: "kill", Version: 1,
		Idempotency: sandbox.Idempotency{Key: rand.Text(), Fingerprint: "f", Until: now().Add(-time.Hour)},
	}
}

// Created is an event for Insert.
func Created() audit.Event {
	return audit.Event{Type: "sandbox.created", At: now(), Actor: "test", Fields: map[string]string{"a": "b"}}
}

// Become is a Mutate function that sets the state.
func Become(st sandbox.State) func(*sandbox.Sandbox) (audit.Event, error) {
	return func(s *sandbox.Sandbox) (audit.Event, error) {
		s.State = st
		switch {
		case st == sandbox.Running:
			s.StartedAt = now()
			s.Handle = provider.Handle{Provider: "fake", Version: 1, ID: string(s.ID), Data: []byte(`{"pid":1}`)}
		case st.Ended():
			s.EndedAt = now()
		}
		return audit.Event{Type: "sandbox." + string(st), Actor: "test"}, nil
	}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
