package batch

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// Limits of a request.
const (
	MaxItems   = 1000
	maxID      = 128
	maxArgs    = 4096
	maxEnv     = 256
	maxFiles   = 64
	maxCollect = 16
	maxPath    = 4096
)

// Check fills in what the request leaves to us and refuses, naming the member,
// what can never be run. Nothing has been changed when it returns.
func (b *Runner) Check(ctx context.Context, who identity.Principal, r *Request) error {
	if n := len(r.Items); n < 1 || n > MaxItems {
		return apierr.Field("items", "must be 1 to %d, are %d", MaxItems, n)
	}
	switch most := b.cfg.MaxConcurrency; {
	case r.Concurrency < 0:
		return apierr.Field("concurrency", "must be at least 1, is %d", r.Concurrency)
	case r.Concurrency > most:
		return apierr.Exceeds("concurrency", "limits.batch_concurrency", "must be at most %d, is %d", most, r.Concurrency)
	case r.Concurrency == 0:
		r.Concurrency = min(DefaultConcurrency, most)
	}
	r.Concurrency = min(r.Concurrency, len(r.Items))
	if r.Timeout <= 0 {
		return apierr.Field("timeoutSeconds", "must be at least 1")
	}
	if err := checkText("cwd", r.Dir, maxPath); err != nil {
		return err
	}
	if err := checkText("user", r.User, maxID); err != nil {
		return err
	}
	if err := checkEnv("env", r.Env); err != nil {
		return err
	}
	seen := make(map[string]int, len(r.Items))
	for i := range r.Items {
		it := &r.Items[i]
		if it.ID == "" {
			it.ID = strconv.Itoa(i)
		}
		at := "items[" + strconv.Itoa(i) + "]"
		if err := it.check(at); err != nil {
			return err
		}
		if first, twice := seen[it.ID]; twice {
			return apierr.Field(at+".id", "%q is that of items[%d] too", it.ID, first)
		}
		seen[it.ID] = i
	}
	if r.Shared != "" {
		return b.checkShared(ctx, who, r.Shared)
	}
	return b.cfg.Sandboxes.Check(ctx, who, b.createRequest(*r))
}

func (b *Runner) checkShared(ctx context.Context, who identity.Principal, id sandbox.ID) error {
	sb, err := b.cfg.Sandboxes.Get(ctx, who, id)
	if errdefs.IsNotFound(err) || (err == nil && sb.State.Ended()) {
		return apierr.New(errdefs.ErrNotFound, "sandbox %q doesn't exist", id)
	}
	if err == nil && sb.State != sandbox.Running {
		return apierr.New(errdefs.ErrConflict, "sandbox %q is %s", id, sb.State)
	}
	return err
}

func (it *Item) check(at string) error {
	if len(it.ID) > maxID || !utf8.ValidString(it.ID) || strings.ContainsFunc(it.ID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return apierr.Field(at+".id", "must be printable text of at most %d bytes", maxID)
	}
	switch {
	case it.Cmd == "" && it.Code == "":
		return apierr.Field(at+".cmd", "give cmd or code")
	case it.Cmd != "" && it.Code != "":
		return apierr.Field(at+".code", "give cmd or code, not both")
	case it.Code == "" && it.Language != "":
		return apierr.Field(at+".language", "goes with code only")
	}
	if it.Code != "" {
		if _, ok := languageOf(it.Language); !ok {
			return apierr.Field(at+".language", "%q is not python, javascript or bash", clip(it.Language))
		}
	}
	if err := checkText(at+".cmd", it.Cmd, maxPath); err != nil {
		return err
	}
	if len(it.Args) > maxArgs {
		return apierr.Field(at+".args", "has %d entries, the limit is %d", len(it.Args), maxArgs)
	}
	for j, arg := range it.Args {
		if strings.Contains(arg, "\x00") {
			return apierr.Field(fmt.Sprintf("%s.args[%d]", at, j), "must not hold a NUL")
		}
	}
	if err := checkEnv(at+".env", it.Env); err != nil {
		return err
	}
	if err := checkText(at+".cwd", it.Dir, maxPath); err != nil {
		return err
	}
	return it.checkFiles(at)
}

func (it *Item) checkFiles(at string) error {
	if len(it.Files) > maxFiles {
		return apierr.Field(at+".files", "has %d entries, the limit is %d", len(it.Files), maxFiles)
	}
	if len(it.Collect) > maxCollect {
		return apierr.Field(at+".collect", "has %d entries, the limit is %d", len(it.Collect), maxCollect)
	}
	for j, f := range it.Files {
		if err := checkPath(fmt.Sprintf("%s.files[%d].path", at, j), f.Path); err != nil {
			return err
		}
	}
	for j, path := range it.Collect {
		if err := checkPath(fmt.Sprintf("%s.collect[%d]", at, j), path); err != nil {
			return err
		}
	}
	return nil
}

func checkPath(field, path string) error {
	if path == "" {
		return apierr.Field(field, "must be given")
	}
	return checkText(field, path, maxPath)
}

func checkText(field, text string, most int) error {
	if len(text) > most {
		return apierr.Field(field, "has %d bytes, the limit is %d", len(text), most)
	}
	if strings.Contains(text, "\x00") {
		return apierr.Field(field, "must not hold a NUL")
	}
	return nil
}

func checkEnv(field string, env map[string]string) error {
	if len(env) > maxEnv {
		return apierr.Field(field, "has %d entries, the limit is %d", len(env), maxEnv)
	}
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return apierr.Field(field, "names must not be empty or hold =, and nothing may hold a NUL")
		}
	}
	return nil
}

// clip bounds text of a request that an error repeats.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
