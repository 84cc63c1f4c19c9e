package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

func (s *session) templateInspect() *cobra.Command {
	var asJSON, lock bool
	cmd := &cobra.Command{
		Use:   "inspect <template>",
		Short: "Show a template with its tags and builds, or what it is made of",
		Long: `Show a template with its tags and builds.

With --lock, show what exactly its current build is made of instead: every package with its version and, with --json, the digest of the image. A stock template that is built again of the same packages has the same digest.`,
		Example: "caisson template inspect mine\ncaisson template inspect mine --json\ncaisson template inspect dev --lock --json > dev.lock.json",
		Args:    args("<template>"), ValidArgsFunction: s.completeTemplate,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if lock {
				return s.showLock(ctx, c, got[0], asJSON)
			}
			t, err := c.Template(ctx, got[0])
			if err != nil {
				return err
			}
			tags, err := c.TemplateTags(ctx, t.ID)
			if err != nil && !errors.Is(err, errdefs.ErrPermissionDenied) { // of another team, and public
				return err
			}
			if asJSON {
				return s.printJSON(struct {
					client.TemplateDetail
					Tags []client.TemplateTag `json:"tags"`
				}{t, slices.Concat([]client.TemplateTag{}, tags)})
			}
			return s.showTemplate(t, tags)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	cmd.Flags().BoolVar(&lock, "lock", false, "show the packages with their versions")
	return cmd
}

func (s *session) showLock(ctx context.Context, c *connection, ref string, asJSON bool) error {
	l, err := c.TemplateLock(ctx, ref)
	if err != nil {
		return err
	}
	if asJSON {
		return s.printJSON(l)
	}
	var rows [][]string
	if l.NPM != "" {
		rows = append(rows, []string{"npm", l.NPM, "(its own)"})
	}
	for _, p := range l.Packages {
		rows = append(rows, []string{p.Name, p.Version, p.Arch})
	}
	return s.table([]string{"PACKAGE", "VERSION", "ARCH"}, rows)
}

func (s *session) showTemplate(t client.TemplateDetail, tags []client.TemplateTag) error {
	access := "private"
	if t.Public {
		access = "public"
	}
	spawned := strconv.FormatInt(t.SpawnCount, 10)
	if !t.LastSpawnedAt.IsZero() {
		spawned += ", the last " + clock(t.LastSpawnedAt)
	}
	err := s.table([]string{"TEMPLATE", t.ID}, [][]string{
		{"names", strings.Join(t.Names, ", ")}, {"access", access}, {"created", clock(t.CreatedAt)}, {"updated", clock(t.UpdatedAt)}, {"sandboxes", spawned},
	})
	if err != nil {
		return err
	}
	of := map[string][]string{}
	for _, tag := range tags {
		of[tag.BuildID] = append(of[tag.BuildID], tag.Tag)
	}
	var rows [][]string
	for _, b := range t.Builds {
		rows = append(rows, []string{
			b.ID, b.Status, strings.Join(of[b.ID], ","), strconv.Itoa(b.CPUs), bytesText(b.MemoryMiB << 20), clock(b.CreatedAt),
		})
	}
	fmt.Fprintln(s.Out)
	return s.table([]string{"BUILD", "STATE", "TAGS", "CPUS", "MEMORY", "CREATED"}, rows)
}

func (s *session) templatePublish() *cobra.Command {
	var private bool
	cmd := &cobra.Command{
		Use:     "publish <template>",
		Short:   "Let other teams of the server create sandboxes of a template",
		Example: "caisson template publish mine\ncaisson template publish mine --private",
		Args:    args("<template>"), ValidArgsFunction: s.completeTemplate,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if err := c.PublishTemplate(ctx, got[0], !private); err != nil {
				return err
			}
			word := "public"
			if private {
				word = "private"
			}
			s.say("%s is %s\n", quoted(got[0]), word)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&private, "private", false, "take it back: only the own team may")
	return cmd
}

// starter is what template init writes.
const starter = `# A recipe for "caisson template build". Paths are relative to this file.
name = %q

# Exactly one of the three:
template = "base"            # a template of this server
# image = "python:3.13"      # an OCI image
# dockerfile = "Dockerfile"  # its steps go before those below

# Of its sandboxes; the server's defaults when left out.
# cpus = 2
# memory = "1GiB"
# free_disk = "4GiB"

# Runs in every sandbox from its beginning; ready exits with 0 when it does.
# start = "python3 -m http.server 8000"
# ready = "curl -fsS http://localhost:8000"

[[steps]]
run = "apt-get update && apt-get install -y --no-install-recommends jq"
as = "root"

# [[steps]]
# copy = "src"
# to = "/home/user/src"

# [[steps]]
# env = { GREETING = "hello" }
`

func (s *session) templateInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init [name]",
		Short: "Write a caisson.toml to begin with",
		Long:  `Write a caisson.toml into the current directory, with one of each kind of step. A file that is there already is left alone.`,
		Example: `caisson template init mine
caisson template build`,
		Args: args("[name]"),
		RunE: func(_ *cobra.Command, got []string) error {
			name := "mine"
			if len(got) > 0 {
				name = got[0]
			}
			path := recipeFiles()[0]
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // a source file, which others may read
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already: %w", path, errdefs.ErrAlreadyExists)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(f, starter, name)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			s.say("wrote %s: edit it, then caisson template build\n", path)
			return nil
		},
	}
}
