package builder

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/setup"
	"github.com/caisson-dev/caisson/template"
)

const (
	// maxEnv bounds the environment of a template, names and values together.
	maxEnv = 256 << 10
	// maxTitle is how much of a step is shown.
	maxTitle = 200
	anyMode  = -1
)

// envName is what a shell takes for the name of a variable.
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// namePrefix is an envName at the beginning of a text.
var namePrefix = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*`)

// describe is a step in one line.
func describe(s template.Step) string {
	args := s.Args
	switch s.Type {
	case "COPY", "ADD":
		args = args[:min(len(args), 2)]
	case "RUN":
		args = args[:min(len(args), 1)]
	case "ENV", "ARG":
		var pairs []string
		for i := 0; i+1 < len(args); i += 2 {
			pairs = append(pairs, args[i]+"="+args[i+1])
		}
		args = pairs
	case "USER", "WORKDIR":
		args = args[:min(len(args), 1)]
	}
	text := strings.Join(strings.Fields(s.Type+" "+strings.Join(args, " ")), " ")
	if len(text) > maxTitle {
		text = strings.ToValidUTF8(text[:maxTitle], "") + "…"
	}
	return text
}

// step runs one step, which changes st; changed says whether it also changed
// files.
func (r *run) step(ctx context.Context, x *box, n int, s template.Step, st *state) (changed bool, err error) {
	limit := r.o.Limits.Step
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the step took longer than %s: %w", limit, context.DeadlineExceeded))
	defer cancel()
	// The cache keeps the state of the step before.
	next := st.clone()
	switch s.Type {
	case "RUN":
		err = r.runStep(ctx, x, n, s, next)
		changed = true
	case "COPY", "ADD":
		err = r.copyStep(ctx, x, n, s, next)
		changed = true
	case "ENV", "ARG":
		err = r.envStep(ctx, x, s, &next)
	case "WORKDIR":
		changed, err = r.workdirStep(ctx, x, s, &next)
	case "USER":
		changed, err = r.userStep(ctx, x, s, &next)
	default:
		err = invalid("unknown step type %q", s.Type)
	}
	if err != nil {
		return false, err
	}
	*st = next
	return changed, nil
}

// fault is an error for the build's author: its text stands alone, its kind is
// for programs.
type fault struct {
	text        string
	kind, cause error
}

func (f *fault) Error() string { return f.text }

// Unwrap returns kind and cause.
func (f *fault) Unwrap() []error {
	if f.cause == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.cause}
}

func invalid(format string, args ...any) error {
	return &fault{text: fmt.Sprintf(format, args...), kind: errdefs.ErrInvalidArgument}
}

func arg(s template.Step, i int) string {
	if i < len(s.Args) {
		return s.Args[i]
	}
	return ""
}

func (r *run) runStep(ctx context.Context, x *box, n int, s template.Step, st state) error {
	line := arg(s, 0)
	if line == "" || len(s.Args) > 2 {
		return invalid("RUN takes a command and perhaps a user, not %d arguments", len(s.Args))
	}
	user := arg(s, 1)
	if user == "" {
		user = st.User
	}
	if err := r.shell(ctx, x, n, line, user, st); err != nil {
		return fmt.Errorf("failed to run command '%s': %w", line, err)
	}
	return nil
}

// shell runs a line and logs what it writes.
func (r *run) shell(ctx context.Context, x *box, n int, line, user string, st state) error {
	out := &stream{j: r.log, step: n, level: levelInfo}
	errs := &stream{j: r.log, step: n, level: levelWarn}
	err := x.exec(ctx, command{line: line, user: user, dir: st.dir(), env: st.Env, stdout: out, stderr: errs})
	out.flush()
	errs.flush()
	return err
}

func (r *run) copyStep(ctx context.Context, x *box, n int, s template.Step, st state) error {
	src, dest := arg(s, 0), arg(s, 1)
	if src == "" || dest == "" || len(s.Args) > 4 {
		return invalid("COPY takes a source, a destination and perhaps an owner and a mode, not %d arguments", len(s.Args))
	}
	if s.FilesHash == "" || r.plan.Files == nil {
		return invalid("COPY %s: no files were uploaded for it", src)
	}
	mode := int64(anyMode)
	if text := arg(s, 3); text != "" {
		m, err := strconv.ParseUint(text, 8, 12)
		if err != nil {
			return invalid("COPY %s: mode %.20q is not octal, at most 7777", src, text)
		}
		mode = int64(m)
	}
	owner := arg(s, 2)
	if owner == "" {
		owner = st.User
	}
	archive, err := r.plan.Files(ctx, s.FilesHash)
	if err != nil {
		return fmt.Errorf("COPY %s: open its files: %w", src, err)
	}
	defer archive.Close()
	res, err := x.setup(ctx, setup.Request{Copy: &setup.Copy{
		Source: src, Dest: absolute(dest, st.dir()), User: owner, Mode: mode,
		Entries: r.o.Limits.ArchiveEntries, Bytes: r.o.Limits.ArchiveBytes,
	}}, archive)
	if err != nil {
		return fmt.Errorf("COPY %s: %w", src, err)
	}
	r.log.info(n, "%d entries, %d bytes", res.Files, res.Bytes)
	return nil
}

// absolute takes a path from dir, and keeps the slash at its end.
func absolute(p, dir string) string {
	slash := strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || p == "."
	if !path.IsAbs(p) {
		p = path.Join(dir, p)
	}
	if p = path.Clean(p); slash && p != "/" {
		p += "/"
	}
	return p
}

func (r *run) envStep(ctx context.Context, x *box, s template.Step, st *state) error {
	if len(s.Args) == 0 || len(s.Args)%2 != 0 {
		return invalid("%s takes names and values in turn, not %d arguments", s.Type, len(s.Args))
	}
	var known map[string]string
	for i := 0; i < len(s.Args); i += 2 {
		name, value := s.Args[i], s.Args[i+1]
		if !envName.MatchString(name) {
			return invalid("%s: %.80q is not the name of a variable", s.Type, name)
		}
		if strings.IndexByte(value, 0) >= 0 {
			return invalid("%s: the value of %s holds a NUL byte", s.Type, name)
		}
		if strings.ContainsRune(value, '$') {
			if known == nil {
				var err error
				if known, err = r.environment(ctx, x, *st); err != nil {
					return fmt.Errorf("%s %s: %w", s.Type, name, err)
				}
			}
			var ok bool
			if value, ok = expand(value, known); !ok {
				return invalid("%s: the value of %s becomes longer than %d bytes", s.Type, name, maxEnv)
			}
		}
		st.Env[name] = value
		if known != nil {
			known[name] = value
		}
	}
	size := 0
	for k, v := range st.Env {
		size += len(k) + len(v)
	}
	if size > maxEnv {
		return invalid("the template's environment has %d bytes, at most %d are allowed", size, maxEnv)
	}
	return nil
}

// environment is what a login shell of the current user sees.
func (r *run) environment(ctx context.Context, x *box, st state) (map[string]string, error) {
	out := &bounded{left: 2 * maxEnv}
	err := x.exec(ctx, command{line: "cat /proc/self/environ", user: st.User, dir: st.dir(), env: st.Env, stdout: out})
	if err != nil {
		return nil, fmt.Errorf("read the environment: %w", err)
	}
	env := map[string]string{}
	for pair := range bytes.SplitSeq([]byte(out.text.String()), []byte{0}) {
		if name, value, ok := strings.Cut(string(pair), "="); ok {
			env[name] = value
		}
	}
	return env, nil
}

// expand replaces $NAME and ${NAME}; a backslash takes a dollar sign its
// meaning. Nothing else of a shell's language is understood. It gives up, and
// returns false, on what becomes longer than maxEnv: a short value can name a long
// one very often.
func expand(value string, env map[string]string) (string, bool) {
	var b strings.Builder
	if len(value) > 2*maxEnv { // every dollar sign may have a backslash
		return "", false
	}
	for i := 0; i < len(value); i++ {
		if b.Len() > maxEnv {
			return "", false
		}
		rest := value[i:]
		switch {
		case strings.HasPrefix(rest, `\$`):
			b.WriteByte('$')
			i++
		case rest[0] != '$':
			b.WriteByte(rest[0])
		default:
			name, length := variable(rest)
			if length == 0 {
				b.WriteByte('$')
				continue
			}
			b.WriteString(env[name])
			i += length - 1
		}
	}
	return b.String(), b.Len() <= maxEnv
}

// variable returns the name that s, which begins with a dollar sign, refers to,
// and how many bytes say so; none when it is no reference.
func variable(s string) (name string, length int) {
	body := s[1:]
	after, braced := strings.CutPrefix(body, "{")
	name = namePrefix.FindString(after)
	switch {
	case name == "", braced && !strings.HasPrefix(after[len(name):], "}"):
		return "", 0
	case braced:
		return name, len(name) + len("${}")
	}
	return name, len(name) + 1
}

func (r *run) workdirStep(ctx context.Context, x *box, s template.Step, st *state) (bool, error) {
	if len(s.Args) != 1 || s.Args[0] == "" {
		return false, invalid("WORKDIR takes one path")
	}
	from := st.Workdir
	if from == "" {
		from = "/"
	}
	dir := path.Clean(absolute(s.Args[0], from))
	res, err := x.setup(ctx, setup.Request{Dir: &setup.Dir{Path: dir, User: st.User}}, nil)
	if err != nil {
		return false, fmt.Errorf("WORKDIR %s: %w", dir, err)
	}
	st.Workdir = dir
	return res.Changed, nil
}

func (r *run) userStep(ctx context.Context, x *box, s template.Step, st *state) (bool, error) {
	name, _, _ := strings.Cut(arg(s, 0), ":")
	if name == "" || len(s.Args) > 2 {
		return false, invalid("USER takes a name")
	}
	res, err := x.setup(ctx, setup.Request{User: &setup.User{Name: name, Sudo: arg(s, 1) == "true"}}, nil)
	if err != nil {
		return false, fmt.Errorf("USER %s: %w", name, err)
	}
	st.User, st.Home = res.Name, res.Home
	return res.Changed, nil
}

// pause waits, or returns why the context ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
