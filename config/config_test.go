package config_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/config"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the generated part of docs/configuration.md")

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLayers(t *testing.T) {
	t.Parallel()
	file := write(t, `# comment
listen: 127.0.0.1:4000
domains: [a.example, b.example]
limits:
  memory_mib: 2GiB
  wall_time: 7d
  cpus: 3
egress:
  default: allow
  hosts:
    db.internal: 10.0.0.5
log: {level: debug}
`)
	l, err := config.Load(config.Inputs{
		File:  file,
		Env:   config.Environ{"CAISSON_LISTEN=127.0.0.1:5000", "CAISSON_LIMITS_CPUS=4", "CAISSON_EGRESS_PRESETS=pypi, npm"},
		Flags: map[string]config.Flag{"listen": {Name: "--listen", Value: "127.0.0.1:6000"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := l.Config
	got := []any{c.Listen, c.Domains, c.Limits.MemoryMiB, c.Limits.WallTime, c.Limits.CPUs, c.Egress.Hosts, c.Egress.Presets, c.Log.Level, c.Limits.Processes}
	want := []any{
		"127.0.0.1:6000",
		[]string{"a.example", "b.example"},
		config.MiB(2048), 7 * 24 * time.Hour, 4,
		map[string]string{"db.internal": "10.0.0.5"},
		[]string{"pypi", "npm"},
		"debug", int64(512),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Load: (-want +got)\n%s", d)
	}
	sources := map[string]string{
		"listen": "--listen", "limits.cpus": "CAISSON_LIMITS_CPUS", "limits.memory_mib": file + ":5",
		"egress.hosts": file + ":10", "log.level": file + ":12", "limits.processes": "default",
	}
	for key, want := range sources {
		if got := l.Source(key).String(); got != want {
			t.Errorf("Source(%q) = %q, want %q", key, got, want)
		}
	}
}

// Plans of warm sandboxes come from all three places, and each can say that there
// are none.
func TestPoolLayers(t *testing.T) {
	t.Parallel()
	type plans = map[string]string
	const full = "pool:\n  templates: {base: 4, 'team/mine:default': '1; mon-fri 08:00-18:00 Europe/Berlin 16'}\n  demand: 0\n  prebooted: 4\n  memory_mib: 2GiB\n  parallel: 3\n"
	off := map[string]config.Flag{"pool.templates": {Name: "--set pool.templates"}, "pool.demand": {Name: "--set pool.demand", Value: "0"}}
	for name, tt := range map[string]struct {
		file  string
		env   config.Environ
		flags map[string]config.Flag
		want  config.Pool
	}{
		"default":          {want: config.Pool{Templates: plans{"base": "2"}, Demand: 16, Prebooted: 2, Parallel: 1}},
		"file":             {file: full, want: config.Pool{Templates: plans{"base": "4", "team/mine:default": "1; mon-fri 08:00-18:00 Europe/Berlin 16"}, Prebooted: 4, MemoryMiB: 2048, Parallel: 3}},
		"file, none":       {file: "pool: {templates: {}, demand: 0}\n", want: config.Pool{Templates: plans{}, Prebooted: 2, Parallel: 1}},
		"variables":        {file: full, env: config.Environ{"CAISSON_POOL_TEMPLATES=base=1; sat-sun 10:00-02:00 UTC 2, mine=3", "CAISSON_POOL_DEMAND=5", "CAISSON_POOL_PREBOOTED=1", "CAISSON_POOL_MEMORY_MIB=512", "CAISSON_POOL_PARALLEL=2"}, want: config.Pool{Templates: plans{"base": "1; sat-sun 10:00-02:00 UTC 2", "mine": "3"}, Demand: 5, Prebooted: 1, MemoryMiB: 512, Parallel: 2}},
		"variables, none":  {env: config.Environ{"CAISSON_POOL_TEMPLATES=base=0", "CAISSON_POOL_DEMAND=0"}, want: config.Pool{Templates: plans{"base": "0"}, Prebooted: 2, Parallel: 1}},
		"empty is not set": {file: full, env: config.Environ{"CAISSON_POOL_TEMPLATES="}, want: config.Pool{Templates: plans{"base": "4", "team/mine:default": "1; mon-fri 08:00-18:00 Europe/Berlin 16"}, Prebooted: 4, MemoryMiB: 2048, Parallel: 3}},
		"flags, none":      {file: full, env: config.Environ{"CAISSON_POOL_DEMAND=5"}, flags: off, want: config.Pool{Templates: plans{}, Prebooted: 4, MemoryMiB: 2048, Parallel: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := config.Load(config.Inputs{File: write(t, tt.file), Env: tt.env, Flags: tt.flags})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, l.Config.Pool); diff != "" {
				t.Errorf("Load().Config.Pool (-want +got)\n%s", diff)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		file string
		env  config.Environ
		want []string
	}{
		"unknown key":       {file: "listn: x\n", want: []string{":1", `unknown key "listn"`, `did you mean "listen"?`}},
		"unknown nested":    {file: "limits:\n  memry_mib: 3\n", want: []string{":2", `did you mean "limits.memory_mib"?`}},
		"unknown section":   {file: "listen: 127.0.0.1:1\nfrobnicate:\n  a: 1\n", want: []string{":2", `unknown key "frobnicate"`}},
		"bad type":          {file: "limits:\n  cpus: many\n", want: []string{":2", "limits.cpus", `"many"`}},
		"negative":          {file: "limits: {cpus: -1}\n", want: []string{"limits.cpus", "0 or more"}},
		"bad size":          {file: "limits: {memory_mib: 3 apples}\n", want: []string{"not a size"}},
		"bad duration":      {env: config.Environ{"CAISSON_LIMITS_WALL_TIME=tomorrow"}, want: []string{"CAISSON_LIMITS_WALL_TIME", "not a duration"}},
		"list for a scalar": {file: "listen: [a, b]\n", want: []string{":1", "expected one value"}},
		"scalar for section": {
			file: "limits: 3\n", want: []string{":1", "expected keys and values"},
		},
		"broken yaml":     {file: "a: [1\n", want: []string{"config.yaml"}},
		"duplicate":       {file: "listen: 127.0.0.1:1\nlisten: 127.0.0.1:2\n", want: []string{"listen"}},
		"two documents":   {file: "listen: 127.0.0.1:1\n---\nlisten: 127.0.0.1:2\n", want: []string{"more than one"}},
		"alias":           {file: "data: &a /x\nlisten: *a\n", want: []string{"expected a plain value"}},
		"bad verdict":     {file: "egress: {default: ask}\n", want: []string{"egress.default", "allow, deny"}},
		"bad cidr":        {file: "egress: {allow_private: [10.0.0.0]}\n", want: []string{"egress.allow_private", "CIDR"}},
		"bad destination": {file: "egress: {allow: ['http://x']}\n", want: []string{"egress.allow"}},
		"tls half":        {file: "tls: {cert: /x}\n", want: []string{"go together"}},
		"above max":       {file: "limits: {cpus: 9}\n", want: []string{"limits.cpus", "limits.max_cpus"}},
		"listen":          {file: "listen: nowhere\n", want: []string{"HOST:PORT"}},
		"several at once": {file: "listen: nowhere\nlog: {level: loud}\n", want: []string{"HOST:PORT", "log.level"}},
		"domain":          {file: "public_domain: Bad_Domain\n", want: []string{"public_domain"}},
		"preset":          {file: "egress: {presets: [pypi, nosuch]}\n", want: []string{"egress.presets", `"nosuch"`, "there are", "npm", "config.yaml:1"}},
		"pool plan":       {file: "pool: {templates: {base: many}}\n", want: []string{"config.yaml:1: pool.templates: base: \"many\" is no number from 0 to 10000", `"2; mon-fri 08:00-18:00 Europe/Berlin 16"`}},
		"pool window":     {file: "pool:\n  templates:\n    base: 2; mon 8-18 4\n", want: []string{":2: pool.templates: base: ", "times of day such as 08:00-18:00"}},
		"pool zone":       {env: config.Environ{"CAISSON_POOL_TEMPLATES=base=1; mon 08:00-18:00 Mars 4"}, want: []string{"CAISSON_POOL_TEMPLATES: pool.templates: base: ", "time zone"}},
		"pool no map":     {env: config.Environ{"CAISSON_POOL_TEMPLATES=4"}, want: []string{`CAISSON_POOL_TEMPLATES: pool.templates: "4" is not of the form name=value`}},
		"pool list":       {file: "pool: {templates: [base]}\n", want: []string{`pool.templates: "base" is not of the form name=value`}},
		"create queue":    {file: "limits: {create_queue: 100001}\n", want: []string{"limits.create_queue: 100001 is not from 0 to 100000"}},
		"queue wait":      {file: "limits: {create_queue_wait: 11m}\n", want: []string{"limits.create_queue_wait: 11m0s is not between 1s and 10m"}},
		"memory reserve":  {file: "limits: {memory_reserve_mib: -1}\n", want: []string{"limits.memory_reserve_mib"}},
		"key retention":   {file: "retention: {idempotency: 30s}\n", want: []string{"retention.idempotency: 30s is below 1m"}},
		"pool demand":     {file: "pool: {demand: 10001}\n", want: []string{"pool.demand: 10001 is not from 0 to 10000"}},
		"pool less":       {env: config.Environ{"CAISSON_POOL_DEMAND=-1"}, want: []string{"pool.demand", "0 or more"}},
		"pool prebooted":  {file: "pool: {prebooted: 10001}\n", want: []string{"pool.prebooted: 10001 is not from 0 to 10000"}},
		"pool memory":     {file: "pool: {memory_mib: much}\n", want: []string{"pool.memory_mib", "not a size"}},
		"pool parallel":   {file: "pool: {parallel: 0}\n", want: []string{"pool.parallel: 0 is not from 1 to 64"}},
		"builds":          {file: "template: {parallel: 0, builds_per_team: 0, build_queue: 0, build_timeout: 0s, upload_max: 0, upload_keep: 1h}\n", want: []string{"template.parallel: 0 is not from 1 to 10000", "template.builds_per_team", "template.build_queue", "template.build_timeout", "template.upload_max", "template.upload_keep: 1h0m0s is below 24h"}},
		"upload share":    {file: "template: {upload_max: 2GiB, upload_space_per_team: 1GiB}\n", want: []string{"template.upload_space_per_team"}},
		"upload space":    {file: "template: {upload_max: 2GiB, upload_space: 1GiB}\n", want: []string{"template.upload_space"}},
		"pool typo":       {file: "pool: {template: {base: 4}}\n", want: []string{`did you mean "pool.templates"?`}},
		"build egress":    {file: "build: {egress: [debian, 'http://x']}\n", want: []string{"build.egress", `"http://x"`}},
		"build time":      {file: "build: {step_timeout: 10ms}\n", want: []string{"build.step_timeout: 10ms is below 1s"}},
		"build memory":    {file: "build: {memory_mib: 1}\n", want: []string{"build.memory_mib: 1 is below 16"}},
		"build cache":     {file: "build: {cache_mib: 0}\n", want: []string{"build.cache_mib: must be more than 0"}},
		"registry cidr":   {file: "images: {allow_private: [10.0.0.0]}\n", want: []string{"images.allow_private", "CIDR"}},
		"mirror":          {file: "images: {mirrors: {docker.io: 'https://x'}}\n", want: []string{"images.mirrors", "docker.io"}},
		"insecure":        {file: "images: {insecure: ['http://x']}\n", want: []string{"images.insecure"}},
		"image alias":     {file: "images: {aliases: {x: ''}}\n", want: []string{"images.aliases"}},
		"batch":           {file: "limits: {batch_concurrency: 0}\n", want: []string{"limits.batch_concurrency", "1 to 1000"}},
		"unenforced":      {file: "limits: {unenforced: [disk]}\n", want: []string{"limits.unenforced"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Load(config.Inputs{File: write(t, tt.file), Env: tt.env})
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("Load = %v, want invalid argument", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	_, err := config.Load(config.Inputs{File: filepath.Join(t.TempDir(), "none.yaml")})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("Load = %v, want not found", err)
	}
	_, err = config.Load(config.Inputs{Env: config.Environ{"CAISSON_CONFIG=/nonexistent/none.yaml"}})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("Load = %v, want not found", err)
	}
}

func TestStrayVariable(t *testing.T) {
	t.Parallel()
	l, err := config.Load(config.Inputs{File: write(t, ""), Env: config.Environ{"CAISSON_LISTN=x", "CAISSON_TEST_LISTEN=x", "CAISSON_TEST_DATA=x", "CAISSON_SERVICE_PORT_HTTPS_SOMETHING=1"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"environment variable CAISSON_LISTN is not a setting; did you mean CAISSON_LISTEN?"}
	if d := cmp.Diff(want, l.Warnings); d != "" {
		t.Errorf("Warnings (-want +got)\n%s", d)
	}
}

// TestSettingsRoundTrip feeds every effective value back through its variable.
func TestSettingsRoundTrip(t *testing.T) {
	t.Parallel()
	first, err := config.Load(config.Inputs{File: write(t, "database: postgres://u:hunter2@h/db\negress: {hosts: {a.b: 10.1.1.1}}\n")})
	if err != nil {
		t.Fatal(err)
	}
	var env config.Environ
	byKey := map[string]string{}
	for _, s := range first.Settings() {
		byKey[s.Key] = s.Value
	}
	if strings.Contains(byKey["database"], "hunter2") {
		t.Errorf("database shows the password: %s", byKey["database"])
	}
	for _, k := range config.Keys() {
		if k.Doc == "" {
			t.Errorf("key %s has no documentation", k.Name)
		}
		env = append(env, k.Env+"="+byKey[k.Name])
	}
	second, err := config.Load(config.Inputs{File: write(t, ""), Env: env})
	if err != nil {
		t.Fatal(err)
	}
	second.Config.Database = first.Config.Database
	if d := cmp.Diff(first.Config, second.Config, cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); d != "" {
		t.Errorf("round trip (-want +got)\n%s", d)
	}
}

// TestDocumentation keeps the table in docs/configuration.md equal to the
// struct; -update rewrites it.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	const path = "../docs/configuration.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- keys: begin -->\n", "<!-- keys: end -->"
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the markers of the table", path)
	}
	want := before + begin + config.Markdown() + end + after
	if want == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s is out of date: run go test ./config -update", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{"listen: 127.0.0.1:1\n", "limits: {cpus: 1}\n", "egress:\n  hosts: {a: 1.1.1.1}\n", "a: &x [*x]\n", "? [a]\n: b\n", "- 1\n", "\x00", "<<: {a: 1}\n", "domains: |\n  a\n"} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, s string) {
		file, err := os.CreateTemp(dir, "*.yaml")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		_, _ = file.WriteString(s)
		file.Close()
		if l, err := config.Load(config.Inputs{File: file.Name()}); err == nil && l == nil {
			t.Fatal("no configuration and no error")
		}
	})
}
