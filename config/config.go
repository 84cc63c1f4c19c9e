// Package config holds every setting of an installation: one struct with its
// defaults, filled from a YAML file, then CAISSON_* variables, then flags. It
// also finds the connection settings of the command line. It is the only
// package that reads the environment; anything may import it and should take
// the sub-struct it needs.
package config

import (
	"os"
	"path/filepath"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

// Config is the whole configuration. Each leaf has a key, the tag names joined
// by dots; its variable is CAISSON_ and the key in capitals with underscores.
type Config struct {
	Data          string        `key:"data" doc:"Directory that holds everything of this installation: database, seed, keys, templates, run files. For root it is /var/lib/caisson, otherwise caisson in the user's data directory."`
	Listen        string        `key:"listen" doc:"Address and port of the one listener for API and sandbox traffic."`
	PublicDomain  string        `key:"public_domain" doc:"Domain under which PORT-ID.DOMAIN reaches a sandbox port, with :PORT when it is not the scheme's own; returned to clients as domain. Empty means localhost and the listening port."`
	Domains       []string      `key:"domains" doc:"Further domains whose sub-domains are routed to sandboxes. public_domain and .localhost always are."`
	ShutdownGrace time.Duration `key:"shutdown_grace" doc:"How long requests in flight may go on after a stop signal. Sandboxes are not touched."`
	Database      string        `key:"database" doc:"PostgreSQL URL. Empty means SQLite in the data directory."`

	TLS       TLS       `key:"tls"`
	Egress    Egress    `key:"egress"`
	Limits    Limits    `key:"limits"`
	Template  Template  `key:"template"`
	Build     Build     `key:"build"`
	Images    Images    `key:"images"`
	Pool      Pool      `key:"pool"`
	Rate      Rate      `key:"rate"`
	Retention Retention `key:"retention"`
	Log       Log       `key:"log"`
	Metrics   Metrics   `key:"metrics"`
}

// TLS says how the listener is encrypted. The zero value is plain HTTP.
type TLS struct {
	Cert       string `key:"cert" doc:"PEM file with the certificate chain for DOMAIN and *.DOMAIN."`
	Key        string `key:"key" doc:"PEM file with the private key of tls.cert."`
	SelfSigned bool   `key:"self_signed" doc:"Make a certificate authority in the data directory and serve with a certificate of its own. Clients must trust the CA file that the server prints at start."`
}

// Enabled reports whether the listener speaks TLS.
func (t TLS) Enabled() bool { return t.SelfSigned || t.Cert != "" }

// Egress is what sandboxes may reach unless a request says otherwise, and the
// most a request may ask for.
type Egress struct {
	Default      egress.Verdict    `key:"default" doc:"What happens to a destination that no rule names: allow or deny."`
	Presets      []string          `key:"presets" doc:"Named sets of hosts that every sandbox may reach, for example pypi, npm, debian, github."`
	Allow        []string          `key:"allow" doc:"Hosts, *.wildcards and CIDRs that every sandbox may reach, beside the presets."`
	CeilingAllow []string          `key:"ceiling_allow" doc:"The widest a request may go: hosts, *.wildcards and CIDRs that allowOut can open. * means any public destination."`
	CeilingDeny  []string          `key:"ceiling_deny" doc:"Hosts, *.wildcards and CIDRs that nothing can open."`
	AllowPrivate []string          `key:"allow_private" doc:"Private, loopback or link-local CIDRs that policies may name. All others stay denied whatever a request says."`
	Hosts        map[string]string `key:"hosts" doc:"Fixed addresses for names, as in a hosts file: name: address. An address in a private range must also be in egress.allow_private."`
	Nameservers  []string          `key:"nameservers" doc:"Resolvers that the gateway asks, as ADDRESS or ADDRESS:PORT. Empty means the host's own."`
}

// Limits are the defaults of a sandbox and the most a request may ask for.
// Templates can set their own defaults below the maxima.
type Limits struct {
	MemoryMiB            MiB           `key:"memory_mib" doc:"Memory of a sandbox."`
	CPUs                 int           `key:"cpus" doc:"Virtual CPUs of a sandbox, and its share of CPU time."`
	DiskMiB              MiB           `key:"disk_mib" doc:"What a sandbox may write to its file system."`
	Processes            int64         `key:"processes" doc:"Processes and threads per user in a sandbox."`
	WallTime             time.Duration `key:"wall_time" doc:"Longest run of one command; 0 means no limit."`
	OutputBytes          Bytes         `key:"output_bytes" doc:"Most output of one command; 0 means no limit."`
	SandboxesPerTeam     int           `key:"sandboxes_per_team" doc:"Sandboxes a team may have open at a time."`
	BatchConcurrency     int           `key:"batch_concurrency" doc:"Most items of a batch that run at a time."`
	PausedPerTeam        int           `key:"paused_per_team" doc:"How many paused sandboxes a team may have before a pause by request is refused; 0 means no limit. A pause by timeout or budget is never refused, but what it paused counts."`
	SnapshotsPerTeam     int           `key:"snapshots_per_team" doc:"Snapshots a team may keep, each tag counted; 0 means no limit."`
	SnapshotBytesPerTeam Bytes         `key:"snapshot_bytes_per_team" doc:"Length of all files of a team's snapshots together; 0 means no limit."`
	MaxTimeout           time.Duration `key:"max_timeout" doc:"Longest time to live a request may ask for."`
	MaxMemoryMiB         MiB           `key:"max_memory_mib" doc:"Most memory a request or a template may ask for."`
	MaxCPUs              int           `key:"max_cpus" doc:"Most CPUs a request or a template may ask for."`
	MaxDiskMiB           MiB           `key:"max_disk_mib" doc:"Most disk a request or a template may ask for."`
	MaxProcesses         int64         `key:"max_processes" doc:"Most processes and threads per user that a request or a template may ask for."`
	CreateQueue          int           `key:"create_queue" doc:"Creates, resumes and children of forks that may wait to be started, of all teams; what is above is answered 429. 0 lets nothing wait."`
	CreateQueueWait      time.Duration `key:"create_queue_wait" doc:"Longest wait in that queue, before the answer is 429."`
	MemoryReserveMiB     MiB           `key:"memory_reserve_mib" doc:"Memory of the host that stays free when sandboxes are started: below it the answer is 503."`
	BudgetCPU            time.Duration `key:"budget_cpu" doc:"CPU time that a sandbox may use over all its runs before it is paused, unless it is created with less; 0 means no limit."`
	BudgetWall           time.Duration `key:"budget_wall" doc:"The same for the time it runs."`
	BudgetEgress         Bytes         `key:"budget_egress" doc:"The same for bytes of the connections it opens, both directions."`
	TeamBudgetCPU        time.Duration `key:"team_budget_cpu" doc:"CPU time that all sandboxes of a team together may use in a period; then they are paused, and none is started before the next one. A team can be given its own: caisson budget set --team. 0 means no limit."`
	TeamBudgetWall       time.Duration `key:"team_budget_wall" doc:"The same for the time they run."`
	TeamBudgetEgress     Bytes         `key:"team_budget_egress" doc:"The same for bytes of the connections they open, both directions."`
	TeamBudgetPeriod     string        `key:"team_budget_period" doc:"How long such a budget lasts: day or month, of the calendar in UTC."`
	Unenforced           []string      `key:"unenforced" doc:"Limits that may go unenforced where the host cannot enforce them: memory, cpu. Without it creating a sandbox fails on such a host."`
}

// Template says how templates are built.
type Template struct {
	DebianMirror string        `key:"debian_mirror" doc:"Debian archive for template builds. Empty means the sources that the host itself uses, else Debian's own."`
	Suite        string        `key:"suite" doc:"Debian release of the base template."`
	BuildTimeout time.Duration `key:"build_timeout" doc:"Longest build of a stock template, and of one from a tar file; build.timeout is that of other builds."`

	Parallel      int           `key:"parallel" doc:"Builds over the API that run at a time; more wait their turn."`
	BuildQueue    int           `key:"build_queue" doc:"Builds of all teams that may run and wait; what is above is answered 429."`
	BuildsPerTeam int           `key:"builds_per_team" doc:"Builds of a team that may run and wait; what is above is answered 429."`
	UploadMax     Bytes         `key:"upload_max" doc:"Largest archive of files for one COPY step."`
	UploadSpace   Bytes         `key:"upload_space" doc:"All such archives together, and templates while they are imported. What no build has asked for lately makes room."`
	UploadTeam    Bytes         `key:"upload_space_per_team" doc:"The share of one team in template.upload_space; 0 means all of it."`
	UploadKeep    time.Duration `key:"upload_keep" doc:"How long archives are kept that no build asks for."`
}

// Build bounds template builds that run steps.
type Build struct {
	Egress       []string      `key:"egress" doc:"What the steps of template builds may reach, whatever sandboxes may: presets, hosts, *.wildcards and CIDRs. The ceiling of egress bounds it too."`
	Timeout      time.Duration `key:"timeout" doc:"Longest build."`
	StepTimeout  time.Duration `key:"step_timeout" doc:"Longest step of a build."`
	ReadyTimeout time.Duration `key:"ready_timeout" doc:"Longest wait for a template's ready command."`
	MemoryMiB    MiB           `key:"memory_mib" doc:"Least memory of the sandbox that runs the steps; a template with more gets that."`
	LogBytes     Bytes         `key:"log_bytes" doc:"Most output of the steps that a build's log keeps."`
	ArchiveBytes Bytes         `key:"archive_bytes" doc:"Most that the files of one COPY step may take, unpacked."`
	CacheMiB     MiB           `key:"cache_mib" doc:"Disk for cached steps; those not used for longest go first."`
	CacheKeep    time.Duration `key:"cache_keep" doc:"How long cached steps and pulled images are kept that no build used."`
}

// Images says where container images come from.
type Images struct {
	Aliases      map[string]string `key:"aliases" doc:"What an image's name means: name: another image, template:NAME, or on this server oci:/DIRECTORY (a layout) or tar:/FILE (of docker save)."`
	Mirrors      map[string]string `key:"mirrors" doc:"Registries that are asked in place of others, as in docker.io: mirror.example:5000. Users' credentials are not sent to them."`
	Insecure     []string          `key:"insecure" doc:"Registries, as HOST:PORT, that are spoken to without TLS. Those on this machine are anyway."`
	AllowPrivate []string          `key:"allow_private" doc:"Private, loopback or link-local CIDRs where registries may be. All others are refused, since users name registries and the server dials them."`
	MaxMiB       MiB               `key:"max_mib" doc:"Most that the files of one image may take, unpacked."`
}

// Pool says how many sandboxes are kept warm: started, and without an identity,
// so that a create need not wait for one to start.
type Pool struct {
	Templates map[string]string `key:"templates" doc:"Warm sandboxes by template, as the team default names it: a number, or with windows, as in base: \"2; mon-fri 08:00-18:00 Europe/Berlin 16\". {} keeps none by plan."`
	Demand    int               `key:"demand" doc:"Most warm sandboxes of one template and size that are kept, where pool.templates says fewer, because as many were created within some ten seconds of the last five minutes; 0 turns that off."`
	Prebooted int               `key:"prebooted" doc:"Sandboxes without anything in them, for resumes, forks, snapshots and creates that find no warm one: so many are kept of each template of pool.templates, and of each image and size that was used in the last minutes; 0 turns that off."`
	MemoryMiB MiB               `key:"memory_mib" doc:"Memory of all warm sandboxes together; 0 means a quarter of the host's."`
	Parallel  int               `key:"parallel" doc:"Warm sandboxes that are started at a time."`
}

// Rate bounds requests. Zero turns a limit off.
type Rate struct {
	RequestsPerSecond int `key:"requests_per_second" doc:"API requests a second for each key; 0 means no limit."`
	Burst             int `key:"burst" doc:"API requests a key may save up."`
	CreatesPerSecond  int `key:"creates_per_second" doc:"Sandboxes a second that a team may create; 0 means no limit."`
	CreateBurst       int `key:"create_burst" doc:"Creates a team may save up."`
	FailuresPerMinute int `key:"failures_per_minute" doc:"Failed authentications a minute for each client address, before it is refused; 0 means no limit."`
}

// Retention says how long records are kept.
type Retention struct {
	Paused      time.Duration `key:"paused" doc:"How long sandboxes stay paused before they end for good; 0 means as long as nobody kills them."`
	Sandboxes   time.Duration `key:"sandboxes" doc:"How long the records of ended sandboxes are kept."`
	Idempotency time.Duration `key:"idempotency" doc:"How long an Idempotency-Key means the sandbox that was created with it. The record is kept at least as long."`
	EgressLog   time.Duration `key:"egress_log" doc:"How long lines of the egress log are kept."`
	Audit       time.Duration `key:"audit" doc:"How long audit events are kept."`
	Metrics     time.Duration `key:"metrics" doc:"How long samples of sandboxes are kept. They get thinner with age: all for 2 hours, one in 30 seconds for a day, then one in 5 minutes."`
	Usage       time.Duration `key:"usage" doc:"How long is kept what each run of a sandbox used, for caisson usage."`
	EgressMax   int           `key:"egress_max" doc:"Lines of the egress log kept for each sandbox; the oldest go first."`
}

// Log says what is logged and how.
type Log struct {
	Level  string `key:"level" doc:"Least level that is logged: debug, info, warn or error."`
	Format string `key:"format" doc:"text, json, or auto: text on a terminal and json elsewhere."`
}

// Metrics says where Prometheus finds its figures, and how often sandboxes are
// measured.
type Metrics struct {
	Listen   string        `key:"listen" doc:"Separate address for GET /metrics. Empty means the main listener, which answers it to loopback clients only."`
	Interval time.Duration `key:"interval" doc:"How often each sandbox is measured, for its metrics and its usage: 1s to 1m. A server that is killed loses at most this much of what is billed."`
}

// Defaults returns the configuration of an installation where nothing is set.
// Only the data directory depends on who runs it and on env.
func Defaults(env Environ) Config {
	return Config{
		Data:          defaultData(env),
		Listen:        "127.0.0.1:3000",
		ShutdownGrace: 10 * time.Second,
		Egress: Egress{
			Default:      egress.Deny,
			CeilingAllow: []string{"*", "0.0.0.0/0"},
		},
		Limits: Limits{
			MemoryMiB: 1024, CPUs: 2, DiskMiB: 4096, Processes: 512,
			WallTime: 24 * time.Hour, OutputBytes: 1 << 30,
			TeamBudgetPeriod: "month",
			SandboxesPerTeam: 200, BatchConcurrency: 64, MaxTimeout: 24 * time.Hour,
			CreateQueue: 256, CreateQueueWait: 30 * time.Second, MemoryReserveMiB: 256,
			MaxMemoryMiB: 8192, MaxCPUs: 8, MaxDiskMiB: 32768, MaxProcesses: 4096,
		},
		Template: Template{
			Suite: "bookworm", BuildTimeout: 30 * time.Minute, Parallel: 2, BuildQueue: 64, BuildsPerTeam: 20,
			UploadMax: 2 << 30, UploadSpace: 20 << 30, UploadTeam: 10 << 30, UploadKeep: 7 * 24 * time.Hour,
		},
		Build: Build{
			Egress:  []string{"alpine", "arch", "conda", "crates", "debian", "fedora", "go", "npm", "pypi", "rhel", "rubygems", "ubuntu"},
			Timeout: 2 * time.Hour, StepTimeout: time.Hour, ReadyTimeout: 10 * time.Minute,
			MemoryMiB: 1024, LogBytes: 16 << 20, ArchiveBytes: 16 << 30, CacheMiB: 20 << 10, CacheKeep: 14 * 24 * time.Hour,
		},
		Images:    Images{Aliases: map[string]string{"e2bdev/base": "template:base"}, MaxMiB: 16 << 10},
		Pool:      Pool{Templates: map[string]string{"base": "2"}, Demand: 16, Prebooted: 2, Parallel: 1},
		Rate:      Rate{RequestsPerSecond: 500, Burst: 1000, CreatesPerSecond: 50, CreateBurst: 200, FailuresPerMinute: 60},
		Retention: Retention{Sandboxes: 7 * 24 * time.Hour, Idempotency: 24 * time.Hour, EgressLog: 7 * 24 * time.Hour, Audit: 365 * 24 * time.Hour, Metrics: 7 * 24 * time.Hour, Usage: 400 * 24 * time.Hour, EgressMax: 10000},
		Metrics:   Metrics{Interval: 5 * time.Second},
		Log:       Log{Level: "info", Format: "auto"},
	}
}

func defaultData(env Environ) string {
	if os.Geteuid() == 0 {
		return "/var/lib/caisson"
	}
	if dir, ok := env.Lookup("XDG_DATA_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "caisson")
	}
	if home, ok := env.Lookup("HOME"); ok && home != "" {
		return filepath.Join(home, ".local", "share", "caisson")
	}
	return "/var/lib/caisson"
}
