package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
)

// addBuild records a build, as a template of its own or as the next of one.
func (s *stack) addBuild(t *testing.T, tmpl template.Template, id template.BuildID) {
	t.Helper()
	b := storetest.Build()
	b.ID, b.Template = id, tmpl.ID
	tmpl.Current, tmpl.CreatedAt, tmpl.UpdatedAt = id, b.CreatedAt, b.CreatedAt
	if err := s.store.PutTemplate(t.Context(), tmpl, b); err != nil {
		t.Fatal(err)
	}
}

func (s *stack) pool(t *testing.T, key string) nativeapi.PoolStatus {
	t.Helper()
	r := s.callAs(t, key, "GET", "/native/v1/pool", nil)
	r.wants(t, "pool", 200, "")
	var got nativeapi.PoolStatus
	r.into(t, &got)
	return got
}

func TestPoolOff(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	if r := s.call(t, "GET", "/native/v1/pool", nil); r.text != `{"enabled":false,"memoryBytes":0,"memoryLimitBytes":0,"pools":[]}`+"\n" {
		t.Errorf("pool = %s", r.text)
	}
	s.callAs(t, "e2b_wrong", "GET", "/native/v1/pool", nil).wants(t, "without a key", 401, "key")
}

func TestPoolStatus(t *testing.T) {
	t.Parallel()
	const before, theirs, current = "before", "theirs", "current"
	res := provider.Resources{MemoryMiB: 512, CPUs: 2, DiskMiB: 1024, Processes: 64}
	s := start(t, settings{pool: native.Pool{
		Status: func() []pool.Status {
			return []pool.Status{
				{
					Key: pool.Key{Build: current, Resources: res}, Template: "as somebody wrote it", Target: 4, Hot: 3, Making: 1,
					Oldest: 90*time.Second + time.Millisecond, Bytes: 36 << 20, Hits: 9, Misses: 1, Made: 13, Failed: 2,
					MadeIn: 140*time.Millisecond + time.Microsecond, Problem: "no room in /var/lib/host",
				},
				{Key: pool.Key{Build: theirs}, Template: "mine", Hot: 1, Bytes: 1 << 40},
				{Key: pool.Key{Build: before, Resources: res}, Misses: 1},
				{Key: pool.Key{Tier: pool.Booted, Image: "sha256:1", Resources: res}, For: current, Target: 2, Hot: 2, Bytes: 24 << 20},
				{Key: pool.Key{Tier: pool.Booted, Image: "sha256:2", Resources: res}, For: "unknown", Hot: 1, Bytes: 1 << 40},
				{Key: pool.Key{Build: "unknown"}, Hot: 1, Bytes: 1 << 40},
			}
		},
		Taken: func() (int64, int64) { return 9, 12 }, MaxBytes: 1 << 30, Planned: []string{"a b", "base", "bsae", "mine"},
	}})
	base := storetest.Template()
	s.addBuild(t, base, before)
	s.addBuild(t, base, current)
	mine := template.Template{ID: "own00000000000000000", Team: "other", Names: []string{"mine"}}
	s.addBuild(t, mine, theirs)

	wire := nativeapi.Resources{MemoryMiB: 512, Cpus: 2, DiskMiB: 1024, Processes: 64}
	now := nativeapi.Pool{
		Template: string(base.ID), TemplateName: "base", BuildID: current, Tier: nativeapi.Hot, Resources: wire, Target: 4, Hot: 3, Making: 1,
		OldestSeconds: 90, MemoryBytes: 36 << 20, Hits: 9, Misses: 1, Made: 13, Failed: 2, LastFillMs: 140,
		Problem: "no room in /var/lib/host",
	}
	booted := nativeapi.Pool{
		Template: string(base.ID), TemplateName: "base", BuildID: current, Tier: nativeapi.Prebooted, Resources: wire,
		Target: 2, Hot: 2, MemoryBytes: 24 << 20,
	}
	old := nativeapi.Pool{Template: string(base.ID), TemplateName: "base", BuildID: before, Tier: nativeapi.Hot, Resources: wire, Misses: 1}
	want := nativeapi.PoolStatus{
		Enabled: true, HitRate: new(0.75), MemoryBytes: 60 << 20, MemoryLimitBytes: 1 << 30,
		Pools: []nativeapi.Pool{now, old, booted}, MissingTemplates: []string{"a b", "bsae", "mine"},
	}
	if diff := cmp.Diff(want, s.pool(t, s.key)); diff != "" {
		t.Errorf("pool of team %s (-want +got):\n%s", identity.DefaultTeam, diff)
	}

	// Another team sees its own, and of the host nothing that is not its business.
	now.Problem = "the server's log and the keys of team default tell why"
	own := nativeapi.Pool{Template: string(mine.ID), TemplateName: "mine", BuildID: theirs, Tier: nativeapi.Hot, Hot: 1, MemoryBytes: 1 << 40}
	want.Pools, want.MissingTemplates, want.MemoryBytes = []nativeapi.Pool{now, own, old, booted}, nil, 60<<20+1<<40
	if diff := cmp.Diff(want, s.pool(t, s.other)); diff != "" {
		t.Errorf("pool of another team (-want +got):\n%s", diff)
	}
	if r := s.callAs(t, s.other, "GET", "/native/v1/pool", nil); strings.Contains(r.text, "/var/lib") || strings.Contains(r.text, "bsae") || strings.Contains(r.text, "unknown") {
		t.Errorf("another team reads %s", r.text)
	}
}

func TestPoolBeforeCreates(t *testing.T) {
	t.Parallel()
	s := start(t, settings{pool: native.Pool{
		Status: func() []pool.Status { return nil }, Taken: func() (int64, int64) { return 0, 0 }, MaxBytes: 1 << 30,
	}})
	if r := s.call(t, "GET", "/native/v1/pool", nil); r.text != `{"enabled":true,"memoryBytes":0,"memoryLimitBytes":1073741824,"pools":[]}`+"\n" {
		t.Errorf("pool = %s", r.text)
	}
}
