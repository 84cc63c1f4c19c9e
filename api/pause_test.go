package api_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/snapshot"
)

// keeper is the fake provider with boxes that can be paused: what is saved is a
// file of no use, and a restored box is a new one. Saving and restoring are
// tested on package provider/gvisor.
type keeper struct{ *fake.Provider }

type keptBox struct{ *fake.Box }

func (keeper) Capabilities() provider.Capabilities {
	return provider.Capabilities{Restore: true, Snapshots: []snapshot.Kind{snapshot.Memory, snapshot.Filesystem}}
}

func kept(b provider.Box, err error) (provider.Box, error) {
	if err != nil {
		return nil, err
	}
	return keptBox{b.(*fake.Box)}, nil //nolint:forcetypeassert // it comes from the fake
}

func (k keeper) Create(ctx context.Context, spec provider.Spec) (provider.Box, error) {
	return kept(k.Provider.Create(ctx, spec))
}

func (k keeper) Open(ctx context.Context, h provider.Handle, a egress.Attachment) (provider.Box, error) {
	return kept(k.Provider.Open(ctx, h, a))
}

func (k keeper) Restore(ctx context.Context, spec provider.Spec, _ snapshot.Artifact, _ snapshot.Vault) (provider.Box, error) {
	return k.Create(ctx, spec)
}

func (keptBox) Snapshot(ctx context.Context, kind snapshot.Kind, v snapshot.Vault) (snapshot.Artifact, error) {
	a := snapshot.Artifact{ID: snapshot.ID(strings.ToLower(rand.Text())), Kind: kind, SizeBytes: 5}
	dir, err := v.Dir(ctx, a.ID)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "saved"), []byte("state"), 0o600)
	}
	return a, err
}

type nativeLife struct {
	ID, State, AgentToken, TrafficToken  string
	StartedAt, EndsAt, EndedAt, PausedAt *time.Time
	Saved                                *struct {
		Kind      string
		SizeBytes int64
	}
	Lifecycle struct {
		OnTimeout             string
		FilesOnly, AutoResume bool
	}
}

// life makes a call of the native API that answers with a sandbox.
func (s *stack) life(t *testing.T, method, path string, body any) nativeLife {
	t.Helper()
	r := s.call(t, method, "/native/v1/sandboxes"+path, body)
	if r.status >= 300 {
		t.Fatalf("%s %s = %d %s", method, path, r.status, r.text)
	}
	var l nativeLife
	r.into(t, &l)
	if l.Lifecycle.OnTimeout == "" {
		t.Errorf("%s %s shows no lifecycle: %s", method, path, r.text)
	}
	return l
}

func TestNativePause(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.life(t, "POST", "", map[string]any{"timeoutSeconds": 100})
	if b.Lifecycle.OnTimeout != "kill" || b.Saved != nil || b.PausedAt != nil || b.EndsAt == nil {
		t.Errorf("created = %+v", b)
	}
	for kind, body := range map[string]any{
		"memory":     nil,
		"filesystem": map[string]any{"filesOnly": true},
	} {
		before := time.Now().Add(-time.Second)
		p := s.life(t, "POST", "/"+b.ID+"/pause", body)
		if p.State != "paused" || p.EndsAt != nil || p.EndedAt != nil || p.AgentToken != "" ||
			p.PausedAt == nil || p.PausedAt.Before(before) || time.Since(*p.PausedAt) < 0 ||
			p.Saved == nil || p.Saved.Kind != kind || p.Saved.SizeBytes != 5 {
			t.Errorf("paused with %s = %+v", kind, p)
		}
		if got := s.life(t, "GET", "/"+b.ID, nil); got.PausedAt == nil || !got.PausedAt.Equal(*p.PausedAt) || got.Saved == nil {
			t.Errorf("detail = %+v, want paused at %v", got, p.PausedAt)
		}
		list := s.call(t, "GET", "/native/v1/sandboxes?state=paused", nil)
		if !strings.Contains(list.text, b.ID) || !strings.Contains(list.text, `"saved"`) || strings.Contains(list.text, "agentToken") {
			t.Errorf("list of paused = %s", list.text)
		}
		path := "/native/v1/sandboxes/" + b.ID
		s.call(t, "POST", path+"/pause", nil).wants(t, "pause again", 409, "paused")
		s.call(t, "POST", path+"/timeout", map[string]any{"timeoutSeconds": 10}).wants(t, "timeout of a paused one", 409, "paused")
		s.call(t, "POST", path+"/resume", map[string]any{"timeoutSeconds": 0}).wants(t, "resume for no time", 400, "timeoutSeconds")

		r := s.life(t, "POST", "/"+b.ID+"/resume", map[string]any{"timeoutSeconds": 200})
		if r.State != "running" || r.PausedAt != nil || r.Saved != nil || r.AgentToken != b.AgentToken ||
			r.EndsAt == nil || r.EndsAt.Sub(*r.StartedAt).Round(time.Second) != 200*time.Second {
			t.Errorf("resumed = %+v", r)
		}
		// It runs: the same call extends, and never shortens.
		if again := s.life(t, "POST", "/"+b.ID+"/resume", map[string]any{"timeoutSeconds": 10}); !again.EndsAt.Equal(*r.EndsAt) {
			t.Errorf("resume of a running sandbox moved its end from %v to %v", r.EndsAt, again.EndsAt)
		}
	}
	if s.life(t, "POST", "/"+b.ID+"/pause", nil).State != "paused" {
		t.Error("not paused")
	}
	s.call(t, "DELETE", "/native/v1/sandboxes/"+b.ID, nil).wants(t, "kill a paused one", 204, "")
	if got := s.life(t, "GET", "/"+b.ID, nil); got.State != "killed" || got.Saved != nil || got.PausedAt != nil || got.EndedAt == nil {
		t.Errorf("killed while paused = %+v", got)
	}
	for _, call := range []string{"/pause", "/resume"} {
		s.call(t, "POST", "/native/v1/sandboxes/"+b.ID+call, nil).wants(t, call+" of an ended one", 404, b.ID)
		s.callAs(t, s.other, "POST", "/native/v1/sandboxes/"+b.ID+call, nil).wants(t, call+" by another team", 404, b.ID)
	}
}

// A sandbox whose time is over is paused when it was created so, is seen so by
// who follows its log, and shows its token only when traffic may wake it.
func TestNativeLifecycleOnTimeout(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for _, tc := range []struct {
		name      string
		lifecycle map[string]any
		kind      string // of what is saved; "" when it is killed
		wakes     bool
	}{
		{"nothing said", nil, "", false},
		{"kill", map[string]any{"onTimeout": "kill", "autoResume": true}, "", false},
		{"pause", map[string]any{"onTimeout": "pause"}, "memory", false},
		{"pause, woken by traffic", map[string]any{"onTimeout": "pause", "autoResume": true}, "memory", true},
		{"pause, files only", map[string]any{"onTimeout": "pause", "filesOnly": true}, "filesystem", false},
	} {
		b := s.life(t, "POST", "", map[string]any{"lifecycle": tc.lifecycle, "network": map[string]any{"privateTraffic": true}})
		got := s.life(t, "POST", "/"+b.ID+"/timeout", map[string]any{"timeoutSeconds": 0}) // its end is now
		if tc.kind == "" {
			if got.State != "killed" {
				t.Errorf("%s: %+v", tc.name, got)
			}
			continue
		}
		if got.State != "paused" || got.Saved == nil || got.Saved.Kind != tc.kind {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if (got.AgentToken != "") != tc.wakes || (got.TrafficToken != "") != tc.wakes {
			t.Errorf("%s: tokens %q and %q, want any: %v", tc.name, got.AgentToken, got.TrafficToken, tc.wakes)
		}
		log := s.call(t, "GET", "/native/v1/sandboxes/"+b.ID+"/events?follow=true", nil)
		if log.status != http.StatusOK || !strings.Contains(log.text, "sandbox.paused") || !strings.HasSuffix(log.text, "event: end\ndata: {}\n\n") {
			t.Errorf("%s: followed log = %s", tc.name, log.text)
		}
	}
}

func TestNativeLifecycleRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for _, tc := range []struct {
		lifecycle any
		text      string
	}{
		{map[string]any{"onTimeout": "sleep"}, `lifecycle.onTimeout: must be kill or pause, is "sleep"`},
		{map[string]any{"onTimeout": "Pause"}, "lifecycle.onTimeout"},
		{map[string]any{"onTimeout": 5}, "lifecycle.onTimeout"},
		{map[string]any{"filesOnly": true}, "lifecycle.filesOnly: needs onTimeout pause"},
		{map[string]any{"onTimeout": "kill", "filesOnly": true}, "lifecycle.filesOnly: needs onTimeout pause"},
		{map[string]any{"onTimeout": "pause", "filesOnly": true, "autoResume": true}, "lifecycle.autoResume: wakes only what was paused with its memory"},
		{map[string]any{"autoResume": "yes"}, "lifecycle.autoResume"},
		{"pause", "lifecycle"},
	} {
		r := s.call(t, "POST", "/native/v1/sandboxes", map[string]any{"lifecycle": tc.lifecycle})
		r.wants(t, tc.text, 400, tc.text)
	}
	b := s.life(t, "POST", "", map[string]any{})
	path := "/native/v1/sandboxes/" + b.ID
	s.call(t, "POST", path+"/pause", map[string]any{"filesOnly": "yes"}).wants(t, "pause", 400, "filesOnly")
	s.call(t, "POST", path+"/resume", map[string]any{"timeoutSeconds": 100_000}).wants(t, "resume", 400, "timeoutSeconds")
}
