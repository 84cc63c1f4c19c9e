package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/recipe"
	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// buildFlags are what template build is asked for.
type buildFlags struct {
	name, file, context   string
	image, template       string
	registryUser          string
	registryPasswordFile  string
	tags, args            []string
	start, ready          string
	noCache, asJSON       bool
	stock                 bool
	memory, disk, fromTar string
	cpus                  int
}

// pollBuild is how often the state of a build is asked for.
const pollBuild = 200 * time.Millisecond

// restartPatience is how long a server may not answer while it builds.
const restartPatience = 30 * time.Second

// recipeFiles are looked for, in this order, when no file is named.
func recipeFiles() []string { return []string{"caisson.toml", "Dockerfile"} }

// overAPI says whether a build is one that the server does. The others are of
// this machine's data directory.
func (b *buildFlags) overAPI(isStock func(string) bool) bool {
	if b.fromTar != "" {
		return false
	}
	if b.file != "" || b.image != "" || b.template != "" {
		return true
	}
	if isStock(b.name) {
		return false
	}
	for _, f := range recipeFiles() {
		if _, err := os.Stat(f); err == nil {
			b.file = f
			return true
		}
	}
	return false
}

// cancelled is the state of a build that this program has ended.
const cancelled = "cancelled"

// What is not a step of the recipe, in logs.
const (
	stepBase     = "base"
	stepFinalize = "finalize"
)

// spec reads the recipe and puts what flags say over it.
func (b *buildFlags) spec() (recipe.Spec, error) {
	var s recipe.Spec
	if b.file != "" {
		o := recipe.Options{Args: map[string]string{}}
		for _, kv := range b.args {
			k, v, ok := strings.Cut(kv, "=")
			if !ok {
				return s, usage(fmt.Errorf("--build-arg %s: write NAME=VALUE", kv))
			}
			o.Args[k] = v
		}
		if b.image != "" || b.template != "" {
			return s, usage(errors.New("--file says what to build from: leave out --from-image and --from-template"))
		}
		var err error
		if s, err = recipe.Load(b.file, o); err != nil {
			return s, err
		}
	}
	s.Recipe.FromImage = cmp.Or(b.image, s.Recipe.FromImage)
	s.Recipe.FromTemplate = cmp.Or(b.template, s.Recipe.FromTemplate)
	if s.Recipe.FromImage != "" && s.Recipe.FromTemplate != "" {
		return s, usage(errors.New("give one of --from-image and --from-template"))
	}
	s.Build.Name = cmp.Or(b.name, s.Build.Name)
	if s.Build.Name == "" {
		return s, usage(errors.New("the template needs a name: give --name, or name in caisson.toml"))
	}
	s.Build.Tags = append(s.Build.Tags, b.tags...)
	s.Build.CPUs = cmp.Or(b.cpus, s.Build.CPUs)
	var r client.Resources
	if err := sizes(&r, b.memory, b.disk); err != nil {
		return s, err
	}
	s.Build.MemoryMiB = cmp.Or(r.MemoryMiB, s.Build.MemoryMiB)
	s.Build.FreeDiskMiB = cmp.Or(r.DiskMiB, s.Build.FreeDiskMiB)
	if b.start != "" {
		s.Recipe.Start, s.Recipe.Ready = b.start, ""
	}
	s.Recipe.Ready = cmp.Or(b.ready, s.Recipe.Ready)
	s.Recipe.Force = b.noCache
	return s, b.login(&s)
}

// login reads the login to the registry; a password is never an argument.
func (b *buildFlags) login(s *recipe.Spec) error {
	if (b.registryUser == "") != (b.registryPasswordFile == "") {
		return usage(errors.New("--registry-user and --registry-password-file go together"))
	}
	if b.registryUser == "" {
		return nil
	}
	if s.Recipe.FromImage == "" {
		return usage(errors.New("a login to a registry goes with an image"))
	}
	in := io.Reader(os.Stdin)
	if b.registryPasswordFile != "-" {
		f, err := os.Open(b.registryPasswordFile)
		if err != nil {
			return usage(fmt.Errorf("--registry-password-file: %w", err))
		}
		defer f.Close()
		in = f
	}
	password, err := io.ReadAll(io.LimitReader(in, 64<<10))
	if err != nil {
		return fmt.Errorf("--registry-password-file: %w", err)
	}
	s.Recipe.Registry = &client.RegistryLogin{Type: "registry", Username: b.registryUser, Password: strings.TrimRight(string(password), "\r\n")}
	return nil
}

// builtStep is one step in the result.
type builtStep struct {
	Step       string `json:"step"`
	Title      string `json:"title,omitempty"`
	Cached     bool   `json:"cached"`
	DurationMS int64  `json:"durationMs"`
}

// built is the result of template build --json.
type built struct {
	client.RegisteredBuild
	Status string              `json:"status"`
	Steps  []builtStep         `json:"steps"`
	Reason *client.BuildReason `json:"reason,omitempty"`
}

// buildOverAPI is template build by the server.
func (s *session) buildOverAPI(ctx context.Context, b *buildFlags) error {
	spec, err := b.spec()
	if err != nil {
		return err
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	for _, n := range spec.Notes {
		s.say("note: %s\n", n)
	}
	p := s.newProgress()
	out, err := s.carryOut(ctx, c, b, spec, p)
	p.end(err)
	if err != nil && out.Status == "" {
		return c.explain(err)
	}
	if out.Status == cancelled {
		s.say("the build was cancelled on the server\n")
	}
	if b.asJSON {
		if perr := s.printJSON(out); perr != nil {
			return perr
		}
	}
	if err != nil {
		return s.buildFailed(err, out)
	}
	if !b.asJSON {
		fmt.Fprintln(s.Out, out.TemplateID)
	}
	s.say("template %s is ready: caisson sandbox create NAME --template %s\n", quoted(spec.Build.Name), quoted(spec.Build.Name))
	return nil
}

// buildFailed shows the last lines of the step that failed.
func (s *session) buildFailed(err error, out built) error {
	const most = 20
	if r := out.Reason; r != nil {
		lines := r.Log
		if len(lines) > 0 && lines[len(lines)-1].Message == r.Message {
			lines = lines[:len(lines)-1]
		}
		for _, l := range lines[max(0, len(lines)-most):] {
			s.sayAlways("  %s\n", l.Message)
		}
	}
	return err
}

// carryOut registers, uploads, starts and follows a build. out.Status is empty
// when it was not started.
func (s *session) carryOut(ctx context.Context, c *connection, b *buildFlags, spec recipe.Spec, p *progress) (out built, err error) {
	p.report("register "+spec.Build.Name, "")
	if out.RegisteredBuild, err = c.RegisterBuild(ctx, spec.Build); err != nil {
		return out, err
	}
	if err := s.uploadAll(ctx, c, b, &spec, out.TemplateID, p); err != nil {
		return out, err
	}
	if err := c.StartBuild(ctx, out.TemplateID, out.BuildID, spec.Recipe); err != nil {
		return out, err
	}
	err = s.follow(ctx, c, spec, &out, p)
	if ctx.Err() != nil {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if cerr := c.CancelBuild(after, out.TemplateID, out.BuildID); cerr != nil && !errors.Is(cerr, errdefs.ErrConflict) {
			return out, errors.Join(err, fmt.Errorf("the build goes on: %w", cerr))
		}
		out.Status = cancelled
	}
	return out, err
}

// uploadAll sends the files that the server has not got.
func (s *session) uploadAll(ctx context.Context, c *connection, b *buildFlags, spec *recipe.Spec, templateID string, p *progress) error {
	if len(spec.Sources) == 0 {
		return nil
	}
	tree, err := recipe.OpenTree(cmp.Or(b.context, filepath.Dir(b.file)))
	if err != nil {
		return err
	}
	defer tree.Close()
	for i := range spec.Recipe.Steps {
		src, ok := spec.Sources[i]
		if !ok {
			continue
		}
		where := b.file
		if src.Line > 0 {
			where += ":" + strconv.Itoa(src.Line)
		}
		hash, err := tree.Hash(src)
		if err != nil {
			return fmt.Errorf("%s: COPY: %w", where, err)
		}
		spec.Recipe.Steps[i].FilesHash = hash
		present, err := c.FilesPresent(ctx, templateID, hash)
		if err != nil {
			return err
		}
		if present {
			continue
		}
		p.report("upload "+src.Pattern, "")
		if err := upload(ctx, c, tree, src, templateID, hash); err != nil {
			return fmt.Errorf("%s: upload %s: %w", where, src.Pattern, err)
		}
	}
	return nil
}

// upload packs files and sends them; their length must be known before.
func upload(ctx context.Context, c *connection, tree *recipe.Tree, src recipe.Source, templateID, hash string) error {
	f, err := os.CreateTemp("", "caisson-files-*")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if err := tree.Archive(src, f); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	return c.UploadFiles(ctx, templateID, hash, f, size)
}

// follow shows a build until it ends.
func (s *session) follow(ctx context.Context, c *connection, spec recipe.Spec, out *built, p *progress) error {
	v := &buildView{spec: spec, out: out, p: p}
	out.Status, out.Steps = client.BuildBuilding, []builtStep{}
	v.enter(stepBase)
	seen, answered := 0, time.Now()
	tick := time.NewTicker(pollBuild)
	defer tick.Stop()
	for {
		st, err := c.BuildStatus(ctx, out.TemplateID, out.BuildID, seen)
		if err != nil {
			// A server that restarts goes on with its builds.
			if !errors.Is(err, errdefs.ErrUnavailable) || time.Since(answered) > restartPatience {
				return err
			}
			v.p.report("", "the server does not answer; it may be restarting")
		} else {
			answered = time.Now()
		}
		seen += len(st.Log)
		for _, l := range st.Log {
			v.line(l)
		}
		// A build that has ended has its whole log: the rest is asked for at once.
		if len(st.Log) > 0 && st.Status != client.BuildBuilding {
			continue
		}
		if err == nil {
			out.Status, out.Reason = st.Status, st.Reason
		}
		switch {
		case st.Status == client.BuildReady:
			return nil
		case st.Status == client.BuildFailed && st.Reason != nil:
			return fmt.Errorf("%sthe build failed: %s", v.title(st.Reason.Step), st.Reason.Message)
		case st.Status == client.BuildFailed:
			return errors.New("the build failed")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// buildView turns log lines into one line a step.
type buildView struct {
	spec recipe.Spec
	out  *built
	p    *progress
	step string
}

func (v *buildView) line(l client.BuildLog) {
	if l.Step != "" {
		v.enter(l.Step)
	}
	v.p.report("", l.Message)
	if !l.Done {
		return
	}
	n, _ := strconv.Atoi(l.Step)
	title := ""
	if n >= 1 && n <= len(v.spec.Titles) {
		title = v.spec.Titles[n-1]
	}
	v.out.Steps = append(v.out.Steps, builtStep{l.Step, title, l.Cached, l.DurationMS})
	word := "done"
	if l.Cached {
		word = "cached"
	}
	v.p.conclude(word, time.Duration(l.DurationMS)*time.Millisecond)
	if n == len(v.spec.Titles) {
		v.enter(stepFinalize) // writing the image may take a while before it says so
	}
}

// enter shows a step as the current one.
func (v *buildView) enter(step string) {
	if step != v.step {
		v.step = step
		v.p.report(v.name(step), "")
	}
}

// name is what a step is called.
func (v *buildView) name(step string) string {
	n, err := strconv.Atoi(step)
	if err != nil || n < 1 || n > len(v.spec.Titles) {
		switch step {
		case stepBase:
			return "base " + cmp.Or(v.spec.Recipe.FromImage, v.spec.Recipe.FromTemplate)
		case stepFinalize:
			return "finish"
		}
		return step
	}
	return fmt.Sprintf("%d/%d %s", n, len(v.spec.Titles), v.spec.Titles[n-1])
}

// title names a step before an error.
func (v *buildView) title(step string) string {
	if step == "" {
		return ""
	}
	return terminal.Text(v.name(step)) + ": "
}

// buildCommandFlags adds the flags of a build over the API.
func buildCommandFlags(cmd *cobra.Command, b *buildFlags) {
	f := cmd.Flags()
	f.StringVarP(&b.file, "file", "f", "", "Dockerfile or caisson.toml (default: caisson.toml, then Dockerfile, here)")
	f.StringVar(&b.name, "name", "", "name of the template, as [team/]name[:tag]")
	f.StringArrayVar(&b.tags, "tag", nil, "further tag; may be repeated")
	f.StringVar(&b.context, "context", "", "directory that COPY copies from (default: that of the file)")
	f.StringVar(&b.image, "from-image", "", "build from this OCI image, without a file")
	f.StringVar(&b.template, "from-template", "", "build from this template, without a file")
	f.StringArrayVar(&b.args, "build-arg", nil, "value of an ARG as NAME=VALUE; may be repeated")
	f.StringVar(&b.start, "start", "", "command that runs in every sandbox from its beginning")
	f.StringVar(&b.ready, "ready", "", "command that exits with 0 when it is ready")
	f.BoolVar(&b.noCache, "no-cache", false, "do every step anew")
	f.StringVar(&b.registryUser, "registry-user", "", "user name for the image's registry")
	f.StringVar(&b.registryPasswordFile, "registry-password-file", "", "file with the password for it; - for standard input")
}
