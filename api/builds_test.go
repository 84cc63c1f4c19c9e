package api_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/caisson-dev/caisson/template/upload"
)

type buildSettings struct {
	limits   queue.Limits
	parallel int
	executor *fakeExecutor
}

func (s *stack) newBuilds(t *testing.T, o buildSettings, defaults provider.Resources, log *slog.Logger) (*queue.Queue, error) {
	t.Helper()
	var err error
	if s.uploads, err = upload.Open(filepath.Join(t.TempDir(), "uploads"), upload.Limits{}); err != nil {
		return nil, err
	}
	if o.executor == nil {
		o.executor = &fakeExecutor{}
	}
	return queue.New(queue.Config{Limits: o.limits, Parallel: o.parallel, Defaults: defaults, Maxima: provider.Resources{CPUs: 8, MemoryMiB: 8192, DiskMiB: 4096}}, queue.Deps{
		Store: s.store, Records: s.store, Catalog: templates{s.store}, Files: s.uploads, Executor: o.executor, Seed: identity.NewSeed(), Log: log,
	})
}

// fakeExecutor is a fake: it runs no command. RUN "exit N" fails, RUN "wait"
// lasts until release is closed or the build ends, RUN "say X" logs X, COPY
// reads its files.
type fakeExecutor struct {
	release chan struct{}
	// plans receives every plan where it is set.
	plans chan template.Plan
}

func (f *fakeExecutor) Execute(ctx context.Context, p template.Plan, log func(template.LogLine)) (template.Artifacts, error) {
	if f.plans != nil {
		f.plans <- p
	}
	a := template.Artifacts{Rootfs: image.Rootfs{Digest: "sha256:" + strings.Repeat("cd", 32)}, Env: map[string]string{}}
	say := func(step int, text string) {
		log(template.LogLine{At: time.Now(), Level: "info", Step: step, Text: text})
	}
	say(0, "[base] FROM "+p.Image.Ref)
	if p.Image.Ref == "nosuch" {
		return a, &template.StepError{Err: fmt.Errorf("image %q does not exist: %w", p.Image.Ref, errdefs.ErrNotFound)}
	}
	if p.Image.Ref == "leaky" {
		return a, &template.StepError{Err: fmt.Errorf("login of %s with %s failed", p.Image.Username, p.Image.Password)}
	}
	for i, s := range p.Steps {
		text := fmt.Sprintf("[builder %d/%d] %s %s", i+1, len(p.Steps), s.Type, strings.Join(s.Args, " "))
		say(i+1, text)
		if err := f.step(ctx, p, s, &a, func(t string) { say(i+1, t) }); err != nil {
			return a, &template.StepError{Step: i + 1, Err: err}
		}
		log(template.LogLine{At: time.Now(), Level: "debug", Step: i + 1, Text: "done", Done: true, Duration: 5 * time.Millisecond, Cached: !p.Force && !s.Force})
	}
	if p.Start == "fail" {
		return a, &template.StepError{Step: -1, Err: errors.New("start command failed: exit status 1")}
	}
	log(template.LogLine{At: time.Now(), Level: "info", Step: -1, Text: "Build finished, took 1s"})
	if p.Start != "" {
		a.Memory = &snapshot.Artifact{ID: snapshot.ID(strings.ReplaceAll(string(p.Build), "-", "")), Kind: snapshot.Memory, RootfsDigest: a.Rootfs.Digest}
	}
	return a, nil
}

func (f *fakeExecutor) step(ctx context.Context, p template.Plan, s template.Step, a *template.Artifacts, say func(string)) error {
	switch s.Type {
	case "RUN":
		if code, ok := strings.CutPrefix(s.Args[0], "exit "); ok {
			return fmt.Errorf("failed to run command '%s': exit status %s", s.Args[0], code)
		}
		if s.Args[0] == "wait" {
			select {
			case <-f.release:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if n, ok := strings.CutPrefix(s.Args[0], "lines "); ok {
			lines, _ := strconv.Atoi(n)
			for i := range lines {
				say("line " + strconv.Itoa(i))
			}
		}
	case "ENV":
		for i := 0; i < len(s.Args); i += 2 {
			a.Env[s.Args[i]] = s.Args[i+1]
		}
	case "COPY":
		r, err := p.Files(ctx, s.FilesHash)
		if err != nil {
			return err
		}
		defer r.Close()
		gz, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		h, err := tar.NewReader(gz).Next()
		if err != nil {
			return err
		}
		say("copied " + h.Name)
	}
	return nil
}

type registered struct {
	TemplateID, BuildID  string
	Public               bool
	Aliases, Names, Tags []string
}

type logEntry struct {
	Timestamp            time.Time
	Message, Level, Step string
	Done, Cached         bool
	DurationMs           int64
}

type buildInfo struct {
	TemplateID, BuildID, Status string
	Logs                        []string
	LogEntries                  []logEntry
	Reason                      *struct {
		Message, Step string
		LogEntries    []logEntry
	}
}

func (s *stack) register(t *testing.T, body map[string]any) registered {
	t.Helper()
	r := s.call(t, "POST", "/v3/templates", body)
	r.wants(t, "register", 202, "")
	var out registered
	r.into(t, &out)
	return out
}

func (b registered) path() string { return "/templates/" + b.TemplateID + "/builds/" + b.BuildID }

func (s *stack) startBuild(t *testing.T, b registered, recipe map[string]any) {
	t.Helper()
	s.call(t, "POST", "/v2"+b.path(), recipe).wants(t, "start", 202, "")
}

// finish polls a build as the SDKs do and returns its state with its whole log.
func (s *stack) finish(t *testing.T, b registered) buildInfo {
	t.Helper()
	var all []logEntry
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		r := s.call(t, "GET", b.path()+"/status?logsOffset="+strconv.Itoa(len(all)), nil)
		r.wants(t, "status", 200, "")
		var in buildInfo
		r.into(t, &in)
		all = append(all, in.LogEntries...)
		if in.Status != "building" && len(in.LogEntries) == 0 {
			in.LogEntries = all
			return in
		}
	}
	t.Fatal("the build does not end")
	return buildInfo{}
}

func (s *stack) build(t *testing.T, name string, recipe map[string]any) (registered, buildInfo) {
	t.Helper()
	b := s.register(t, map[string]any{"name": name})
	s.startBuild(t, b, recipe)
	return b, s.finish(t, b)
}

func steps(lines ...string) []map[string]any {
	var out []map[string]any
	for _, l := range lines {
		kind, arg, _ := strings.Cut(l, " ")
		out = append(out, map[string]any{"type": kind, "args": []string{arg}, "gzip": true, "resolveSymlinks": false})
	}
	return out
}

func TestBuild(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.register(t, map[string]any{"name": "Mine:v1", "tags": []string{"v1", "stable"}, "cpuCount": 2, "memoryMB": 256})
	want := registered{TemplateID: b.TemplateID, BuildID: b.BuildID, Aliases: []string{"mine"}, Names: []string{"default/mine"}, Tags: []string{"stable", "v1"}}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("register (-want +got):\n%s", diff)
	}
	var waiting buildInfo
	s.call(t, "GET", b.path()+"/status", nil).into(t, &waiting)
	if waiting.Status != "waiting" || waiting.LogEntries == nil || waiting.Logs == nil {
		t.Errorf("status before start = %+v", waiting)
	}
	s.call(t, "GET", "/templates/aliases/mine", nil).wants(t, "alias of an unfinished template", 200, "")
	s.call(t, "POST", "/v2/sandboxes", map[string]any{"templateID": "mine:v1"}).wants(t, "create before the build", 404, "mine:v1")
	s.startBuild(t, b, map[string]any{"fromImage": "debian:stable", "steps": append(steps("RUN say hello"), map[string]any{"type": "ENV", "args": []string{"A", "b"}})})
	var building buildInfo
	s.call(t, "GET", b.path()+"/status", nil).into(t, &building)
	if building.Status == "waiting" {
		t.Errorf("status after start = %+v", building)
	}
	got := s.finish(t, b)
	if got.Status != "ready" || got.Reason != nil {
		t.Fatalf("status = %+v", got)
	}
	var text []string
	for i, e := range got.LogEntries {
		text = append(text, e.Level+" "+e.Step+" "+e.Message)
		if i > 0 && e.Timestamp.Before(got.LogEntries[i-1].Timestamp) {
			t.Errorf("line %d is older than the one before", i)
		}
	}
	last := text[len(text)-1]
	if diff := cmp.Diff([]string{
		"info base [base] FROM debian:stable", "info 1 [builder 1/2] RUN say hello", "debug 1 done", "info 2 [builder 2/2] ENV A b", "debug 2 done",
	}, text[:len(text)-1]); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(last, "info finalize Build finished, took ") {
		t.Errorf("last line = %q", last)
	}
	if e := got.LogEntries[2]; !e.Done || !e.Cached || e.DurationMs != 5 {
		t.Errorf("end of a step = %+v", e)
	}
	for ref, status := range map[string]int{"mine:v1": 201, "default/mine:stable": 201, b.TemplateID + ":v1": 201, "mine": 404, "mine:v2": 404} {
		s.call(t, "POST", "/v2/sandboxes", map[string]any{"templateID": ref}).wants(t, "create "+ref, status, "mine")
	}
	var shown struct {
		SpawnCount    int
		LastSpawnedAt *time.Time
		Builds        []struct {
			BuildID, Status    string
			CPUCount, MemoryMB int
			FinishedAt         *time.Time
		}
	}
	s.call(t, "GET", "/templates/mine", nil).into(t, &shown)
	if shown.SpawnCount != 3 || shown.LastSpawnedAt == nil || len(shown.Builds) != 1 || shown.Builds[0].CPUCount != 2 || shown.Builds[0].MemoryMB != 256 || shown.Builds[0].FinishedAt == nil {
		t.Errorf("template = %+v", shown)
	}
	s.call(t, "POST", "/v2"+b.path(), map[string]any{"fromImage": "x"}).wants(t, "start again", 400, "not waiting")
}

func TestBuildLogPages(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b, got := s.build(t, "long", map[string]any{"fromImage": "i", "steps": steps("RUN lines 250")})
	if len(got.LogEntries) != 254 {
		t.Fatalf("%d lines, want 254", len(got.LogEntries))
	}
	for i, e := range got.LogEntries[2:252] {
		if e.Message != "line "+strconv.Itoa(i) {
			t.Fatalf("line %d = %q", i, e.Message)
		}
	}
	page := func(query string) (out struct{ Logs, LogEntries []logEntry }) {
		s.call(t, "GET", b.path()+"/logs?"+query, nil).into(t, &out)
		return out
	}
	if p := page(""); len(p.Logs) != 100 || p.Logs[0].Message != "[base] FROM i" {
		t.Errorf("first page has %d lines, from %q", len(p.Logs), p.Logs[0].Message)
	}
	if p := page("direction=backward&limit=2"); len(p.Logs) != 2 || !strings.HasPrefix(p.Logs[0].Message, "Build finished") {
		t.Errorf("backward = %+v", p.Logs)
	}
	if p := page("level=error"); len(p.Logs) != 0 {
		t.Errorf("errors = %+v", p.Logs)
	}
	if p := page("cursor=" + strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)); len(p.Logs) != 0 {
		t.Errorf("later lines = %+v", p.Logs)
	}
	if p := page("limit=0"); len(p.Logs) != 0 {
		t.Errorf("limit 0 = %+v", p.Logs)
	}
	for query, text := range map[string]string{
		"limit=101": "limit", "limit=-1": "limit", "level=loud": "level", "direction=up": "direction", "cursor=-1": "cursor", "source=x": "source",
	} {
		s.call(t, "GET", b.path()+"/logs?"+query, nil).wants(t, query, 400, text)
	}
	var in buildInfo
	s.call(t, "GET", b.path()+"/status?level=info&logsOffset=251&limit=1", nil).into(t, &in)
	if len(in.LogEntries) != 1 || in.LogEntries[0].Message != "line 249" {
		t.Errorf("offset among the lines of a level = %+v", in.LogEntries)
	}
	s.call(t, "GET", b.path()+"/status?logsOffset=-1", nil).wants(t, "negative offset", 400, "logsOffset")
}

func TestBuildFails(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	_, first := s.build(t, "mine", map[string]any{"fromImage": "i"})
	if first.Status != "ready" {
		t.Fatalf("first build = %+v", first)
	}
	hash := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		recipe     map[string]any
		step, text string
	}{
		"no image":     {map[string]any{"fromImage": "nosuch"}, "base", `image "nosuch" does not exist`},
		"run":          {map[string]any{"fromImage": "i", "steps": steps("RUN true", "RUN exit 3")}, "2", "failed to run command 'exit 3': exit status 3"},
		"start":        {map[string]any{"fromImage": "i", "startCmd": "fail"}, "finalize", "start command failed"},
		"unknown type": {map[string]any{"fromImage": "i", "steps": steps("RUN true", "MOUNT x")}, "2", `no steps of type "MOUNT"`},
		"no hash":      {map[string]any{"fromImage": "i", "steps": []any{map[string]any{"type": "COPY", "args": []string{"a", "b", "", ""}}}}, "1", "COPY has no filesHash"},
		"bad hash":     {map[string]any{"fromImage": "i", "steps": []any{map[string]any{"type": "COPY", "args": []string{"a", "b", "", ""}, "filesHash": "../../x"}}}, "1", "filesHash"},
		"no files":     {map[string]any{"fromImage": "i", "steps": []any{map[string]any{"type": "COPY", "args": []string{"a", "b", "", ""}, "filesHash": hash}}}, "1", "were not uploaded"},
		"mode":         {map[string]any{"fromImage": "i", "steps": []any{map[string]any{"type": "ADD", "args": []string{"a", "b", "", "rwx"}, "filesHash": hash}}}, "1", "not octal"},
		"odd env":      {map[string]any{"fromImage": "i", "steps": steps("ENV A")}, "1", "in turn"},
		"empty run":    {map[string]any{"fromImage": "i", "steps": steps("RUN")}, "1", "RUN takes a command"},
	} {
		_, got := s.build(t, "mine", c.recipe)
		if got.Status != "error" || got.Reason == nil || got.Reason.Step != c.step || !strings.Contains(got.Reason.Message, c.text) {
			t.Errorf("%s: %s, %+v, want an error of step %s with %q", name, got.Status, got.Reason, c.step, c.text)
			continue
		}
		if n := len(got.Reason.LogEntries); n == 0 || got.Reason.LogEntries[n-1].Level != "error" || got.Reason.LogEntries[n-1].Step != c.step {
			t.Errorf("%s: lines of the step = %+v", name, got.Reason.LogEntries)
		}
		if last := got.LogEntries[len(got.LogEntries)-1]; last.Level != "error" || !strings.Contains(last.Message, c.text) {
			t.Errorf("%s: last line = %+v", name, last)
		}
	}
	// What was ready stays what the name means.
	s.call(t, "POST", "/v2/sandboxes", map[string]any{"templateID": "mine"}).wants(t, "create after failures", 201, "")
}

func TestBuildRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for text, body := range map[string]any{
		"name: must be given":                      map[string]any{},
		"not [team/]name[:tag]":                    map[string]any{"name": "a b"},
		"own team":                                 map[string]any{"name": "other/x"},
		"is not a tag":                             map[string]any{"name": "x", "tags": []string{"a/b"}},
		"not a UUID":                               map[string]any{"name": "x", "tags": []string{uuid.NewString()}},
		"CPU count must be at least 1":             map[string]any{"name": "x", "cpuCount": 0},
		"CPU count must be at most 32":             map[string]any{"name": "x", "cpuCount": 34},
		"CPU count must be 1 or an even number":    map[string]any{"name": "x", "cpuCount": 3},
		"CPU count must be at most 8":              map[string]any{"name": "x", "cpuCount": 16},
		"Memory must be at least 128":              map[string]any{"name": "x", "memoryMB": 64},
		"Memory must be divisible by 2":            map[string]any{"name": "x", "memoryMB": 129},
		"Memory must be at most 8192":              map[string]any{"name": "x", "memoryMB": 9000},
		"Free disk must be at most 4096":           map[string]any{"name": "x", "minFreeDiskMb": 5000},
		"teamID":                                   map[string]any{"name": "x", "teamID": "other"},
		"validation error: request body is empty":  "",
		"validation error: cpuCount: must be a wh": `{"name":"x","cpuCount":"2"}`,
	} {
		s.call(t, "POST", "/v3/templates", body).wants(t, text, 400, text)
	}
	b := s.register(t, map[string]any{"name": "x"})
	for text, body := range map[string]any{
		"exactly one of":                  map[string]any{"steps": steps("RUN true")},
		"exactly one":                     map[string]any{"fromImage": "a", "fromTemplate": "base"},
		"is not the name of an image":     map[string]any{"fromImage": "a b"},
		"goes with fromImage only":        map[string]any{"fromTemplate": "base", "fromImageRegistry": map[string]any{"type": "registry", "username": "u", "password": "p"}},
		"needs username and password":     map[string]any{"fromImage": "a", "fromImageRegistry": map[string]any{"type": "registry"}},
		"aws is not built yet":            map[string]any{"fromImage": "a", "fromImageRegistry": map[string]any{"type": "aws"}},
		`"ftp" is not registry`:           map[string]any{"fromImage": "a", "fromImageRegistry": map[string]any{"type": "ftp"}},
		"startCmd: is longer":             map[string]any{"fromImage": "a", "startCmd": strings.Repeat("x", 64<<10)},
		"steps: has 1001":                 map[string]any{"fromImage": "a", "steps": steps(make([]string, 1001)...)},
		"validation error: steps: must b": map[string]any{"fromImage": "a", "steps": "x"},
	} {
		s.call(t, "POST", "/v2"+b.path(), body).wants(t, text, 400, text)
	}
	s.call(t, "POST", "/v2"+b.path(), map[string]any{"fromTemplate": "nosuch"}).wants(t, "unknown base", 404, "nosuch")
	s.call(t, "POST", "/v2/templates/"+b.TemplateID+"/builds/"+uuid.NewString(), map[string]any{"fromImage": "i"}).wants(t, "unknown build", 404, "has no build")
	s.call(t, "POST", "/v2/templates/nosuch/builds/"+b.BuildID, map[string]any{"fromImage": "i"}).wants(t, "unknown template", 404, "nosuch")
	s.call(t, "GET", "/templates/"+b.TemplateID+"/builds/"+uuid.NewString()+"/status", nil).wants(t, "status of an unknown build", 400, "has no build")
	s.call(t, "GET", "/templates/"+b.TemplateID+"/builds/"+uuid.NewString()+"/logs", nil).wants(t, "log of an unknown build", 404, "has no build")
	// Another team sees none of it, and may not build what is public.
	base := "/templates/base/builds/0b8e5c1e-0000-4000-8000-000000000001/status"
	s.callAs(t, s.other, "GET", base, nil).wants(t, "build of another team's public template", 403, "another team")
	s.callAs(t, s.other, "GET", b.path()+"/logs", nil).wants(t, "build of another team", 404, b.TemplateID)
	s.callAs(t, s.other, "POST", "/v2"+b.path(), map[string]any{"fromImage": "i"}).wants(t, "start of another team's build", 404, b.TemplateID)
	s.callAs(t, s.other, "GET", "/templates/"+b.TemplateID+"/files/"+strings.Repeat("a", 64), nil).wants(t, "upload to another team's", 404, b.TemplateID)
	s.callAs(t, s.other, "GET", "/templates/aliases/"+b.TemplateID, nil).wants(t, "another team's id", 403, "another team")
	s.callAs(t, s.other, "GET", "/templates/aliases/x", nil).wants(t, "another team's plain name", 404, "x")
	// That body could be started all along.
	s.startBuild(t, b, map[string]any{"fromTemplate": "base"})
	if got := s.finish(t, b); got.Status != "ready" {
		t.Errorf("build = %+v", got)
	}
}

func TestBuildLimits(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := start(t, settings{build: buildSettings{limits: queue.Limits{PerTeam: 2, Total: 3}, parallel: 1, executor: &fakeExecutor{release: release}}})
	waiting := map[string]any{"fromImage": "i", "steps": steps("RUN wait")}
	var all []registered
	for range 3 {
		all = append(all, s.register(t, map[string]any{"name": "x"}))
	}
	s.startBuild(t, all[0], waiting)
	s.startBuild(t, all[1], waiting)
	s.call(t, "POST", "/v2"+all[2].path(), waiting).wants(t, "third of a team", 429, "2 builds under way")
	close(release)
	for _, b := range all[:2] {
		if got := s.finish(t, b); got.Status != "ready" {
			t.Errorf("build = %+v", got)
		}
	}
	s.startBuild(t, all[2], waiting)
	if got := s.finish(t, all[2]); got.Status != "ready" {
		t.Errorf("the one that was refused = %+v", got)
	}
}

func TestBuildCredentials(t *testing.T) {
	t.Parallel()
	plans := make(chan template.Plan, 1)
	s := start(t, settings{build: buildSettings{executor: &fakeExecutor{plans: plans}}})
	const password = "hunter2-and-more"
	b, got := s.build(t, "mine", map[string]any{
		"fromImage": "leaky", "fromImageRegistry": map[string]any{"type": "registry", "username": "u", "password": password},
	})
	if p := <-plans; p.Image.Username != "u" || p.Image.Password != password {
		t.Errorf("plan has login %q, %q", p.Image.Username, p.Image.Password)
	}
	if got.Reason == nil || got.Reason.Message != "login of u with [redacted] failed" {
		t.Errorf("reason = %+v", got.Reason)
	}
	for _, path := range []string{b.path() + "/status", b.path() + "/logs", "/templates/mine", "/native/v1/templates"} {
		if r := s.call(t, "GET", path, nil); strings.Contains(r.text, password) {
			t.Errorf("%s shows the password", path)
		}
	}
	if pending, err := s.store.PendingBuilds(t.Context()); err != nil || len(pending) != 0 {
		t.Errorf("recipes that are kept = %v, %v", pending, err)
	}
}

func archive(t *testing.T, name string) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	w := tar.NewWriter(gz)
	err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 1}), func() error { _, err := io.WriteString(w, "x"); return err }(), w.Close(), gz.Close())
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// put uploads as the SDKs do: without key and type, with a length unless it is
// hidden.
func (s *stack) put(t *testing.T, link string, body []byte, chunked bool) reply {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	if chunked {
		r = struct{ io.Reader }{r}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, link, r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func (s *stack) link(t *testing.T, b registered, hash string) (present bool, link string) {
	t.Helper()
	r := s.call(t, "GET", "/templates/"+b.TemplateID+"/files/"+hash, nil)
	r.wants(t, "files", 201, "")
	var out struct {
		Present bool
		URL     string
	}
	r.into(t, &out)
	return out.Present, out.URL
}

// secureLink is the link as a client gets it through a proxy that ends TLS.
func (s *stack) secureLink(t *testing.T, b registered, hash string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/templates/"+b.TemplateID+"/files/"+hash, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.key)
	req.Header.Set("X-Forwarded-Proto", "https")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct{ URL string }
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out.URL
}

func TestUpload(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.register(t, map[string]any{"name": "mine"})
	hash, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	files := archive(t, "a.txt")
	present, link := s.link(t, b, hash)
	if present || !strings.HasPrefix(link, s.url+"/templates/") {
		t.Fatalf("files = %v, %q", present, link)
	}
	if !strings.HasPrefix(s.secureLink(t, b, hash), strings.Replace(s.url, "http:", "https:", 1)+"/templates/") {
		t.Error("behind a proxy that ends TLS the link is not https")
	}
	// Whatever is changed, the link does not hold.
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	change := func(key, value string) string {
		c := *u
		q := c.Query()
		q.Set(key, value)
		c.RawQuery = q.Encode()
		return c.String()
	}
	for name, bad := range map[string]string{
		"team": change("team", "other"), "max": change("max", "9999999999"), "expires": change("expires", "9999999999"),
		"nonce": change("nonce", strings.Repeat("A", 26)), "signature": change("signature", strings.Repeat("0", 64)),
		"hash": strings.Replace(link, hash, other, 1), "template": strings.Replace(link, b.TemplateID, "aaaaaaaaaaaaaaaaaaaa", 1),
		"none": strings.Split(link, "?")[0],
	} {
		s.put(t, bad, files, false).wants(t, "link with another "+name, 403, "not valid")
	}
	s.put(t, link, files, true).wants(t, "without length", 400, "Content-Length")
	s.put(t, link, make([]byte, 1<<20+1), false).wants(t, "above the limit", 413, "limit")
	// None of that has used it up.
	s.put(t, link, files, false).wants(t, "upload", 200, "")
	s.put(t, link, files, false).wants(t, "upload again", 403, "not valid")
	if present, _ := s.link(t, b, hash); !present {
		t.Error("what was uploaded is not present")
	}
	if present, _ := s.link(t, b, other); present {
		t.Error("what was not uploaded is present")
	}
	s.call(t, "GET", "/templates/"+b.TemplateID+"/files/abc", nil).wants(t, "bad hash", 400, "hash")
	s.call(t, "GET", "/templates/nosuch/files/"+hash, nil).wants(t, "unknown template", 404, "nosuch")
	s.startBuild(t, b, map[string]any{"fromImage": "i", "steps": []any{map[string]any{"type": "COPY", "args": []string{"a.txt", "/b"}, "filesHash": hash}}})
	got := s.finish(t, b)
	if got.Status != "ready" || got.LogEntries[2].Message != "copied a.txt" {
		t.Errorf("build with files = %+v", got)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	one, _ := s.build(t, "mine", map[string]any{"fromImage": "i"})
	assign := func(target string, tags ...string) (out struct {
		BuildID string
		Tags    []string
	},
	) {
		r := s.call(t, "POST", "/templates/tags", map[string]any{"target": target, "tags": tags})
		r.wants(t, "assign", 201, "")
		r.into(t, &out)
		return out
	}
	if got := assign("mine", "v1", "Stable"); got.BuildID != one.BuildID || !cmp.Equal(got.Tags, []string{"v1", "stable"}) {
		t.Errorf("assign = %+v", got)
	}
	two, _ := s.build(t, "mine", map[string]any{"fromImage": "i"})
	if two.TemplateID != one.TemplateID || two.BuildID == one.BuildID {
		t.Errorf("second build = %+v, the first %+v", two, one)
	}
	if got := assign("mine:stable", "default"); got.BuildID != one.BuildID {
		t.Errorf("the older build again = %+v", got)
	}
	type tag struct{ Tag, BuildID string }
	tags := func() (out []tag) {
		s.call(t, "GET", "/templates/"+one.TemplateID+"/tags", nil).into(t, &out)
		return out
	}
	if diff := cmp.Diff([]tag{{"default", one.BuildID}, {"stable", one.BuildID}, {"v1", one.BuildID}}, tags()); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	s.call(t, "DELETE", "/templates/tags", map[string]any{"name": "mine", "tags": []string{"v1", "nosuch"}}).wants(t, "remove one that is not there", 404, "nosuch")
	if len(tags()) != 3 {
		t.Error("a refused removal has removed")
	}
	s.call(t, "DELETE", "/templates/tags", map[string]any{"name": "mine", "tags": []string{"v1"}}).wants(t, "remove", 204, "")
	s.call(t, "GET", "/templates/aliases/mine:v1", nil).wants(t, "alias with a tag that is gone", 404, "")
	s.call(t, "GET", "/templates/aliases/mine:stable", nil).wants(t, "alias with a tag", 200, "")
	for what, c := range map[string]struct {
		method string
		body   map[string]any
		status int
		text   string
	}{
		"default":          {"DELETE", map[string]any{"name": "mine", "tags": []string{"default"}}, 400, "cannot be removed"},
		"tag in the name":  {"DELETE", map[string]any{"name": "mine:stable", "tags": []string{"x"}}, 400, "has a tag"},
		"nothing":          {"DELETE", map[string]any{"name": "mine", "tags": []string{}}, 400, "must have a member"},
		"no template":      {"DELETE", map[string]any{"name": "nosuch", "tags": []string{"x"}}, 404, "nosuch"},
		"assign nothing":   {"POST", map[string]any{"target": "mine", "tags": []string{}}, 400, "must have a member"},
		"assign bad":       {"POST", map[string]any{"target": "mine", "tags": []string{"a b"}}, 400, "is not a tag"},
		"assign from none": {"POST", map[string]any{"target": "mine:nosuch", "tags": []string{"x"}}, 404, "no tag"},
		"assign foreign":   {"POST", map[string]any{"target": "other/mine", "tags": []string{"x"}}, 400, "own team"},
	} {
		s.call(t, c.method, "/templates/tags", c.body).wants(t, what, c.status, c.text)
	}
	s.callAs(t, s.other, "POST", "/templates/tags", map[string]any{"target": "base", "tags": []string{"x"}}).wants(t, "tag of another team's public template", 403, "another team")
	s.callAs(t, s.other, "GET", "/templates/base/tags", nil).wants(t, "tags of another team's public template", 403, "another team")
}

func TestPublish(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b, _ := s.build(t, "mine", map[string]any{"fromImage": "i"})
	s.callAs(t, s.other, "POST", "/v2/sandboxes", map[string]any{"templateID": "mine"}).wants(t, "private", 404, "mine")
	r := s.call(t, "PATCH", "/v2/templates/mine", map[string]any{"public": true})
	r.wants(t, "publish", 200, "")
	if !strings.Contains(r.text, "default/mine") {
		t.Errorf("publish = %s", r.text)
	}
	s.callAs(t, s.other, "POST", "/v2/sandboxes", map[string]any{"templateID": "mine"}).wants(t, "public", 201, "")
	s.callAs(t, s.other, "PATCH", "/v2/templates/mine", map[string]any{"public": false}).wants(t, "publish of another team's", 403, "another team")
	s.callAs(t, s.other, "DELETE", "/templates/mine", nil).wants(t, "delete of another team's", 403, "another team")
	s.call(t, "PATCH", "/templates/"+b.TemplateID, map[string]any{"public": false}).wants(t, "unpublish", 200, "")
	s.callAs(t, s.other, "POST", "/v2/sandboxes", map[string]any{"templateID": "mine"}).wants(t, "private again", 404, "mine")
	s.call(t, "DELETE", "/templates/mine", nil).wants(t, "delete with a sandbox of another team", 400, "in use")
}

// TestBuildWithMemory creates a sandbox from a build whose start command runs.
func TestBuildWithMemory(t *testing.T) {
	t.Parallel()
	plans := make(chan template.Plan, 2)
	s := start(t, settings{build: buildSettings{executor: &fakeExecutor{plans: plans}}})
	b := s.register(t, map[string]any{"name": "served", "cpuCount": 2, "memoryMB": 256})
	s.startBuild(t, b, map[string]any{"fromImage": "i", "startCmd": "serve", "steps": []any{map[string]any{"type": "ENV", "args": []string{"A", "b"}}}})
	if got := s.finish(t, b); got.Status != "ready" {
		t.Fatalf("build = %+v", got)
	}
	p := <-plans
	want := provider.Resources{CPUs: 2, MemoryMiB: 256, DiskMiB: 1024, Processes: 64}
	if p.Start != "serve" || p.Ready != "sleep 20" || p.Resources != want {
		t.Errorf("plan = %q, %q, %+v", p.Start, p.Ready, p.Resources)
	}
	c := s.create(t, map[string]any{"templateID": "served"})
	// Another team's sandbox of it gets no identity of the first.
	s.call(t, "PATCH", "/v2/templates/served", map[string]any{"public": true}).wants(t, "publish", 200, "")
	r := s.callAs(t, s.other, "POST", "/v2/sandboxes", map[string]any{"templateID": "served"})
	r.wants(t, "create of another team", 201, "")
	var foreign created
	r.into(t, &foreign)
	if c.EnvdAccessToken == "" || c.EnvdAccessToken == foreign.EnvdAccessToken {
		t.Error("tokens are not each sandbox's own")
	}
	var detail struct {
		CPUCount, MemoryMB int
	}
	s.call(t, "GET", "/sandboxes/"+c.SandboxID, nil).into(t, &detail)
	if detail.CPUCount != 2 || detail.MemoryMB != 256 {
		t.Errorf("sandbox = %+v", detail)
	}
	sb := s.life(t, "GET", "/"+c.SandboxID, nil)
	if sb.ID == "" {
		t.Error("the native API does not show it")
	}
	s.call(t, "POST", "/native/v1/sandboxes", map[string]any{"template": "served", "resources": map[string]any{"memoryMiB": 512}}).
		wants(t, "other resources", 400, "saved memory")
	// What stands on it inherits its commands.
	on := s.register(t, map[string]any{"name": "above"})
	s.startBuild(t, on, map[string]any{"fromTemplate": "served", "readyCmd": "true"})
	if got := s.finish(t, on); got.Status != "ready" {
		t.Fatalf("build = %+v", got)
	}
	if p := <-plans; p.Start != "serve" || p.Ready != "true" || p.Base == nil || string(p.Base.ID) != b.BuildID {
		t.Errorf("plan above = %q, %q, %+v", p.Start, p.Ready, p.Base)
	}
}

func TestDeleteWhileBuilding(t *testing.T) {
	t.Parallel()
	s := start(t, settings{build: buildSettings{executor: &fakeExecutor{release: make(chan struct{})}, parallel: 1}})
	b := s.register(t, map[string]any{"name": "mine"})
	s.startBuild(t, b, map[string]any{"fromImage": "i", "steps": steps("RUN wait")})
	s.call(t, "DELETE", "/templates/mine", nil).wants(t, "delete", 204, "")
	s.call(t, "GET", b.path()+"/status", nil).wants(t, "status after", 400, "")
	// Its place is free.
	if _, got := s.build(t, "next", map[string]any{"fromImage": "i"}); got.Status != "ready" {
		t.Errorf("next build = %+v", got)
	}
}
