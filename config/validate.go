package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/pool"
)

// check collects problems, each with its key and where the value came from.
type check struct {
	l        *Loaded
	problems []error
}

func (c *check) fail(key, format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf("%s: %s: %s", c.l.Source(key), key, fmt.Sprintf(format, args...)))
}

func (c *check) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.fail(key, "%q must be one of %s", value, strings.Join(allowed, ", "))
	}
}

func (l *Loaded) validate() error {
	c := &check{l: l}
	cfg := l.Config
	c.address("listen", cfg.Listen)
	if cfg.Metrics.Listen != "" {
		c.address("metrics.listen", cfg.Metrics.Listen)
	}
	if cfg.PublicDomain != "" {
		c.domain("public_domain", cfg.PublicDomain)
	}
	for _, d := range cfg.Domains {
		c.domain("domains", d)
	}
	c.tls(cfg.TLS)
	c.egress(cfg.Egress)
	c.limits(cfg.Limits)
	if cfg.Retention.Paused < 0 {
		c.fail("retention.paused", "must not be negative")
	}
	if i := cfg.Metrics.Interval; i < time.Second || i > time.Minute {
		c.fail("metrics.interval", "%s is not between 1s and 1m", i)
	}
	for key, keep := range map[string]time.Duration{"retention.metrics": cfg.Retention.Metrics, "retention.usage": cfg.Retention.Usage} {
		if keep < time.Hour {
			c.fail(key, "%s is below 1h", keep)
		}
	}
	if cfg.Retention.Idempotency < time.Minute {
		c.fail("retention.idempotency", "%s is below 1m", cfg.Retention.Idempotency)
	}
	c.pool(cfg.Pool)
	c.build(cfg.Build)
	c.images(cfg.Images)
	c.oneOf("log.level", cfg.Log.Level, "debug", "info", "warn", "error")
	c.oneOf("log.format", cfg.Log.Format, "auto", "text", "json")
	if cfg.Database != "" && !strings.HasPrefix(cfg.Database, "postgres://") && !strings.HasPrefix(cfg.Database, "postgresql://") {
		c.fail("database", "must be empty or begin with postgres://")
	}
	if m := cfg.Template.DebianMirror; m != "" {
		if u, err := url.Parse(m); err != nil || u.Host == "" {
			c.fail("template.debian_mirror", "must be a URL")
		}
	}
	c.builds(cfg.Template)
	if !word.MatchString(cfg.Template.Suite) {
		c.fail("template.suite", "%q is not the name of a Debian release", cfg.Template.Suite)
	}
	return errors.Join(c.problems...)
}

var (
	word  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func (c *check) address(key, s string) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		c.fail(key, "%q is not HOST:PORT", s)
		return
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		c.fail(key, "%q is not a port number", port)
	}
}

func (c *check) domain(key, s string) {
	host, port, hasPort := strings.Cut(s, ":")
	if n, err := strconv.Atoi(port); hasPort && (err != nil || n < 1 || n > 65535) {
		c.fail(key, "%q has no valid port after the colon", s)
	}
	if !hostname(host) {
		c.fail(key, "%q is not a domain name in lower case", s)
	}
}

func hostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !label.MatchString(l) {
			return false
		}
	}
	return true
}

func (c *check) tls(t TLS) {
	if (t.Cert == "") != (t.Key == "") {
		c.fail("tls.cert", "tls.cert and tls.key go together; only one is set")
	}
	if t.SelfSigned && t.Cert != "" {
		c.fail("tls.self_signed", "cannot be combined with tls.cert")
	}
}

func (c *check) egress(e Egress) {
	if e.Default != egress.Allow && e.Default != egress.Deny {
		c.fail("egress.default", "%q must be one of allow, deny", e.Default)
	}
	for _, p := range e.Presets {
		if _, ok := egress.Preset(p); !ok {
			c.fail("egress.presets", "there is no preset %q; there are %s", p, strings.Join(egress.PresetNames(), ", "))
		}
	}
	for key, list := range map[string][]string{
		"egress.allow": e.Allow, "egress.ceiling_allow": e.CeilingAllow, "egress.ceiling_deny": e.CeilingDeny,
	} {
		for _, s := range list {
			if !destination(s) {
				c.fail(key, "%q is not a host name, *.wildcard, address or CIDR", s)
			}
		}
	}
	for _, s := range e.AllowPrivate {
		if _, err := netip.ParsePrefix(s); err != nil {
			c.fail("egress.allow_private", "%q is not a CIDR", s)
		}
	}
	for name, addr := range e.Hosts {
		if _, err := netip.ParseAddr(addr); err != nil || !hostname(name) {
			c.fail("egress.hosts", "%s: %s is not a lower-case name with an IP address", name, addr)
		}
	}
	for _, s := range e.Nameservers {
		_, err := netip.ParseAddr(s)
		if _, err2 := netip.ParseAddrPort(s); err != nil && err2 != nil {
			c.fail("egress.nameservers", "%q is not an IP address, with or without :PORT", s)
		}
	}
}

// destination accepts what a rule may name.
func destination(s string) bool {
	if s == "*" {
		return true
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return true
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return hostname(strings.TrimPrefix(s, "*."))
}

// maxBatchConcurrency bounds what one call may keep in memory: some MiB an item.
const (
	maxBatchConcurrency = 1000
	// maxQueue bounds limits.create_queue: each that waits holds a connection.
	maxQueue = 100_000
)

func (c *check) limits(l Limits) {
	c.within("limits.memory_mib", int64(l.MemoryMiB), 16, int64(l.MaxMemoryMiB), "limits.max_memory_mib")
	c.within("limits.cpus", int64(l.CPUs), 1, int64(l.MaxCPUs), "limits.max_cpus")
	c.within("limits.processes", l.Processes, 1, l.MaxProcesses, "limits.max_processes")
	c.within("limits.disk_mib", int64(l.DiskMiB), 1, int64(l.MaxDiskMiB), "limits.max_disk_mib")
	if l.Processes < 16 {
		c.fail("limits.processes", "%d is below 16, the fewest that a shell needs", l.Processes)
	}
	if l.MaxTimeout <= 0 {
		c.fail("limits.max_timeout", "must be more than 0")
	}
	if l.PausedPerTeam < 0 {
		c.fail("limits.paused_per_team", "must not be negative")
	}
	if l.SandboxesPerTeam < 1 {
		c.fail("limits.sandboxes_per_team", "must be at least 1")
	}
	if l.BatchConcurrency < 1 || l.BatchConcurrency > maxBatchConcurrency {
		c.fail("limits.batch_concurrency", "must be 1 to %d", maxBatchConcurrency)
	}
	if l.CreateQueue < 0 || l.CreateQueue > maxQueue {
		c.fail("limits.create_queue", "%d is not from 0 to %d", l.CreateQueue, maxQueue)
	}
	if l.CreateQueueWait < time.Second || l.CreateQueueWait > 10*time.Minute {
		c.fail("limits.create_queue_wait", "%s is not between 1s and 10m", l.CreateQueueWait)
	}
	if l.MemoryReserveMiB < 0 {
		c.fail("limits.memory_reserve_mib", "must not be negative")
	}
	c.oneOf("limits.team_budget_period", l.TeamBudgetPeriod, "day", "month")
	for key, v := range map[string]int64{
		"limits.budget_cpu": int64(l.BudgetCPU), "limits.budget_wall": int64(l.BudgetWall), "limits.budget_egress": int64(l.BudgetEgress),
		"limits.team_budget_cpu": int64(l.TeamBudgetCPU), "limits.team_budget_wall": int64(l.TeamBudgetWall), "limits.team_budget_egress": int64(l.TeamBudgetEgress),
		"limits.snapshots_per_team": int64(l.SnapshotsPerTeam), "limits.snapshot_bytes_per_team": int64(l.SnapshotBytesPerTeam),
	} {
		if v < 0 {
			c.fail(key, "must not be negative")
		}
	}
	for _, u := range l.Unenforced {
		c.oneOf("limits.unenforced", u, "memory", "cpu")
	}
}

func (c *check) build(b Build) {
	for _, s := range b.Egress {
		if _, ok := egress.Preset(s); !ok && !destination(s) {
			c.fail("build.egress", "%q is no preset, host name, *.wildcard, address or CIDR; presets are %s", s, strings.Join(egress.PresetNames(), ", "))
		}
	}
	for key, v := range map[string]time.Duration{
		"build.timeout": b.Timeout, "build.step_timeout": b.StepTimeout, "build.ready_timeout": b.ReadyTimeout, "build.cache_keep": b.CacheKeep,
	} {
		if v < time.Second {
			c.fail(key, "%s is below 1s", v)
		}
	}
	for key, v := range map[string]int64{
		"build.log_bytes": int64(b.LogBytes), "build.archive_bytes": int64(b.ArchiveBytes), "build.cache_mib": int64(b.CacheMiB),
	} {
		if v < 1 {
			c.fail(key, "must be more than 0")
		}
	}
	if b.MemoryMiB < 16 {
		c.fail("build.memory_mib", "%d is below 16", b.MemoryMiB)
	}
}

func (c *check) images(i Images) {
	for _, s := range i.AllowPrivate {
		if _, err := netip.ParsePrefix(s); err != nil {
			c.fail("images.allow_private", "%q is not a CIDR", s)
		}
	}
	for _, s := range i.Insecure {
		if host, _, _ := strings.Cut(s, ":"); host == "" || strings.ContainsAny(s, "/@ ") {
			c.fail("images.insecure", "%q is not HOST or HOST:PORT", s)
		}
	}
	for from, to := range i.Mirrors {
		if from == "" || to == "" || strings.Contains(from, "/") || strings.Contains(to, "://") {
			c.fail("images.mirrors", "%s: %s is not of the form REGISTRY: HOST:PORT[/PATH]", from, to)
		}
	}
	for from, to := range i.Aliases {
		if from == "" || to == "" {
			c.fail("images.aliases", "%s: %s is not of the form NAME: IMAGE", from, to)
		}
	}
	if i.MaxMiB < 1 {
		c.fail("images.max_mib", "must be more than 0")
	}
}

func (c *check) builds(t Template) {
	for key, v := range map[string]int{"template.parallel": t.Parallel, "template.build_queue": t.BuildQueue, "template.builds_per_team": t.BuildsPerTeam} {
		if v < 1 || v > 10_000 {
			c.fail(key, "%d is not from 1 to 10000", v)
		}
	}
	if t.BuildTimeout <= 0 {
		c.fail("template.build_timeout", "must be more than 0")
	}
	if t.UploadMax < 1 {
		c.fail("template.upload_max", "must be more than 0")
	}
	if t.UploadSpace < t.UploadMax {
		c.fail("template.upload_space", "%d is below template.upload_max, which is %d", t.UploadSpace, t.UploadMax)
	}
	if t.UploadTeam != 0 && t.UploadTeam < t.UploadMax {
		c.fail("template.upload_space_per_team", "%d is below template.upload_max, which is %d", t.UploadTeam, t.UploadMax)
	}
	if t.UploadKeep < 24*time.Hour {
		c.fail("template.upload_keep", "%s is below 24h", t.UploadKeep)
	}
}

func (c *check) pool(p Pool) {
	for ref, plan := range p.Templates {
		if _, err := pool.ParsePlan(plan); err != nil {
			c.fail("pool.templates", "%s: %s", ref, err)
		}
	}
	if p.Demand < 0 || p.Demand > pool.MaxHot {
		c.fail("pool.demand", "%d is not from 0 to %d", p.Demand, pool.MaxHot)
	}
	if p.Prebooted < 0 || p.Prebooted > pool.MaxHot {
		c.fail("pool.prebooted", "%d is not from 0 to %d", p.Prebooted, pool.MaxHot)
	}
	if p.MemoryMiB < 0 {
		c.fail("pool.memory_mib", "must not be negative")
	}
	if p.Parallel < 1 || p.Parallel > 64 {
		c.fail("pool.parallel", "%d is not from 1 to 64", p.Parallel)
	}
}

func (c *check) within(key string, v, least, most int64, mostKey string) {
	if v < least {
		c.fail(key, "%d is below %d", v, least)
	}
	if v > most {
		c.fail(key, "%d is above %s, which is %d", v, mostKey, most)
	}
}
