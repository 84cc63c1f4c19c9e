package sandbox

import (
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
)

// Limits of a create request, in bytes where they count text.
const (
	maxName          = 128
	maxMetadata      = 64
	maxMetadataKey   = 128
	maxMetadataValue = 2 << 10
	maxMetadataTotal = 16 << 10
	maxEnv           = 256
	maxEnvKey        = 256
	maxEnvValue      = 64 << 10
	maxEnvTotal      = 256 << 10
)

// check refuses a request that can never be served, naming the field.
func (r CreateRequest) check(cfg Config) error {
	if r.Template == "" {
		return apierr.Field("template", "must be given")
	}
	if len(r.Name) > maxName {
		return apierr.Field("name", "is longer than %d bytes", maxName)
	}
	if !printable(r.Name) {
		return apierr.Field("name", "must be printable text")
	}
	if r.Timeout <= 0 {
		return apierr.Field("timeout", "must be more than 0")
	}
	if err := checkTimeout(r.Timeout, cfg.MaxTimeout); err != nil {
		return err
	}
	err := checkMap("metadata", r.Metadata, mapLimits{maxMetadata, maxMetadataKey, maxMetadataValue, maxMetadataTotal})
	if err != nil {
		return err
	}
	if err := checkMap("env", r.Env, mapLimits{maxEnv, maxEnvKey, maxEnvValue, maxEnvTotal}); err != nil {
		return err
	}
	for k, v := range r.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return apierr.Field("env", "names must not be empty or hold =, and nothing may hold a NUL")
		}
	}
	return nil
}

func checkTimeout(d, most time.Duration) error {
	if d < 0 {
		return apierr.Field("timeout", "must not be negative")
	}
	if d > most {
		return apierr.Exceeds("timeout", "limits.max_timeout", "%s is above the maximum of %s", d, most)
	}
	return nil
}

type mapLimits struct{ entries, key, value, total int }

func checkMap(field string, kv map[string]string, l mapLimits) error {
	if len(kv) > l.entries {
		return apierr.Field(field, "has %d entries, the limit is %d", len(kv), l.entries)
	}
	total := 0
	for k, v := range kv {
		switch {
		case len(k) > l.key:
			return apierr.Field(field, "has a name of %d bytes, the limit is %d", len(k), l.key)
		case len(v) > l.value:
			return apierr.Field(field, "value of %q has %d bytes, the limit is %d", k, len(v), l.value)
		case !utf8.ValidString(k) || !utf8.ValidString(v):
			return apierr.Field(field, "must be UTF-8")
		}
		total += len(k) + len(v)
	}
	if total > l.total {
		return apierr.Field(field, "has %d bytes in all, the limit is %d", total, l.total)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || (r >= 0x7f && r < 0xa0) })
}

// resources settles what a sandbox gets: the request's wish, else the build's,
// else the server's default, within the server's maxima.
func (c Config) resources(want, build provider.Resources) (provider.Resources, error) {
	var got provider.Resources
	var firstErr error
	settle := func(field, limit string, want, build, def, most int64) int64 {
		v := want
		if v == 0 {
			v = build
		}
		if v == 0 {
			v = def
		}
		var err error
		switch {
		case v < 0:
			err = apierr.Field(field, "must not be negative")
		case most > 0 && v > most:
			err = apierr.Exceeds(field, limit, "%d is above the maximum of %d", v, most)
		case most > 0 && v == 0:
			v = most
		}
		if firstErr == nil {
			firstErr = err
		}
		return v
	}
	d, most := c.Defaults, c.Maxima
	got.MemoryMiB = settle("resources.memoryMiB", "limits.max_memory_mib", want.MemoryMiB, build.MemoryMiB, d.MemoryMiB, most.MemoryMiB)
	got.CPUs = int(settle("resources.cpus", "limits.max_cpus", int64(want.CPUs), int64(build.CPUs), int64(d.CPUs), int64(most.CPUs)))
	got.DiskMiB = settle("resources.diskMiB", "limits.max_disk_mib", want.DiskMiB, build.DiskMiB, d.DiskMiB, most.DiskMiB)
	got.Processes = settle("resources.processes", "limits.processes", want.Processes, build.Processes, d.Processes, most.Processes)
	return got, firstErr
}

// environment is what the agent gives every process; the request's values go
// over the build's. E2B_ variables are the agent's own.
func environment(build template.Build, r CreateRequest) map[string]string {
	env := make(map[string]string, len(build.Env)+len(r.Env))
	maps.Copy(env, build.Env)
	maps.Copy(env, r.Env)
	return env
}

// reasonText is what a Failed record says of err: what the caller may know. The
// log has the rest, under the sandbox's id.
func reasonText(id ID, stage string, err error) string {
	return stage + ": " + apierr.Describe(err, string(id)).Message
}
