package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

func (s *session) templateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "template", Short: "Build, list, inspect, publish, export, import and delete templates", Args: noSubcommand, RunE: showHelp}
	cmd.AddCommand(s.templateInit(), s.templateBuild(), s.templateList(), s.templateInspect(), s.templatePublish(), s.templateExport(), s.templateImport(), s.templateDelete())
	return cmd
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// noSubcommand explains an unknown sub-command instead of showing help with
// exit code 0.
func noSubcommand(cmd *cobra.Command, got []string) error {
	if len(got) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", got[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(got[0]); len(near) > 0 {
		text += fmt.Sprintf(": did you mean %q?", near[0])
	}
	return usage(fmt.Errorf("%s", text))
}

func (s *session) templateBuild() *cobra.Command {
	b := &buildFlags{}
	cmd := &cobra.Command{
		Use:   "build [name]",
		Short: "Build a template from a Dockerfile, a caisson.toml, an image or a tar file",
		Long: `Build a template. The server builds what --file, --from-image or --from-template says, inside a sandbox; each step is a line, with its time, or "cached".

With --from-tar, and for the names of stock templates without any of those, it is built in this machine's data directory instead: the stock templates from Debian packages, all of them with --stock. One of this version is kept as it is without --no-cache, and so is a template of your own with such a name.
` + s.stockList() + `

Sandboxes that run keep the build they were started from, and until the new one is ready its name means the old one.`,
		Example: `caisson template build mine
caisson template build -f Dockerfile --name mine --no-cache
caisson template build py --from-image python:3.13 --tag v2
caisson template build code-interpreter-v1
caisson template build --stock dev
docker export box | caisson template build mine --from-tar -`,
		Args: args("[name]"), ValidArgsFunction: s.completeStock,
	}
	flags := s.configFlags(cmd, "log-level")
	buildCommandFlags(cmd, b)
	f := cmd.Flags()
	f.StringVar(&b.fromTar, "from-tar", "", "tar file with the root file system; - for standard input")
	f.BoolVar(&b.stock, "stock", false, "build the stock template that is named, or all of them")
	f.StringVar(&b.memory, "memory", "", "memory of its sandboxes, for example 2GiB")
	f.StringVar(&b.disk, "disk", "", "disk of its sandboxes")
	f.IntVar(&b.cpus, "cpus", 0, "number of CPUs of its sandboxes")
	f.BoolVarP(&b.asJSON, "json", "j", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, got []string) error {
		if len(got) > 0 {
			if b.name != "" && b.name != got[0] {
				return usage(errors.New("the name is given twice"))
			}
			b.name = got[0]
		}
		if b.stock {
			if err := s.checkStock(cmd, b); err != nil {
				return err
			}
			return s.buildStock(cmd.Context(), flags(), b)
		}
		if err := s.checkName(b); err != nil {
			return err
		}
		if b.overAPI(s.isStock) {
			return s.buildOverAPI(cmd.Context(), b)
		}
		if b.fromTar == "" && s.isStock(b.name) {
			if err := leftOut(cmd, quoted(b.name)+" is a stock template, which is built without a recipe", ofRecipes()...); err != nil {
				return err
			}
		}
		return s.buildHere(cmd.Context(), flags(), b)
	}
	return cmd
}

// buildHere builds into this machine's data directory.
func (s *session) buildHere(ctx context.Context, flags map[string]config.Flag, b *buildFlags) error {
	if b.name == "" || b.fromTar == "" && !s.isStock(b.name) {
		return usage(fmt.Errorf("there is nothing to build from: no %s here, and none of --file, --from-image, --from-template and --from-tar is given", strings.Join(recipeFiles(), " or ")))
	}
	l, err := s.load(flags)
	if err != nil {
		return err
	}
	if s.Local.BuildTemplate == nil {
		return fmt.Errorf("template build: %w", errNotHere)
	}
	local := TemplateBuild{Name: b.name, FromTar: b.fromTar, Force: b.noCache, Resources: client.Resources{CPUs: b.cpus}}
	if err := sizes(&local.Resources, b.memory, b.disk); err != nil {
		return err
	}
	if err := tarFile(&local); err != nil {
		return err
	}
	p, begun := s.newProgress(), time.Now()
	t, err := s.Local.BuildTemplate(ctx, l.Config, local, p.report)
	p.end(err)
	if err != nil {
		return err
	}
	if b.asJSON {
		return s.printJSON(t)
	}
	fmt.Fprintln(s.Out, t.ID)
	s.stockDone(b, t, begun)
	return nil
}

// tarFile makes b.FromTar an absolute path; standard input is /dev/stdin.
func tarFile(b *TemplateBuild) (err error) {
	switch b.FromTar {
	case "":
		return nil
	case "-":
		b.FromTar = "/dev/stdin"
		return nil
	}
	if b.FromTar, err = filepath.Abs(b.FromTar); err != nil {
		return err
	}
	if _, err := os.Stat(b.FromTar); err != nil {
		return usage(fmt.Errorf("--from-tar: %w", err))
	}
	return nil
}

// sizes parses --memory and --disk.
func sizes(r *client.Resources, memory, disk string) error {
	for _, v := range []struct {
		flag, text string
		into       *int64
	}{{"--memory", memory, &r.MemoryMiB}, {"--disk", disk, &r.DiskMiB}} {
		if v.text == "" {
			continue
		}
		var m config.MiB
		if err := m.UnmarshalText([]byte(v.text)); err != nil {
			return usage(fmt.Errorf("%s: %w", v.flag, err))
		}
		*v.into = int64(m)
	}
	return nil
}

func (s *session) templateList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the templates that sandboxes can be created from",
		Example: "caisson template list",
		Args:    args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			list, err := c.Templates(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(map[string]any{"templates": list})
			}
			var rows [][]string
			for _, t := range list {
				rows = append(rows, []string{strings.Join(t.Names, ","), t.ID, t.BuildStatus, bytesText(t.RootfsBytes), t.Source, clock(t.UpdatedAt)})
			}
			return s.table([]string{"NAME", "ID", "BUILD", "SIZE", "SOURCE", "UPDATED"}, rows)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// completeTemplate offers the names of templates, once.
func (s *session) completeTemplate(cmd *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := s.connect()
	if err != nil || len(got) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	all, err := c.Templates(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, t := range all {
		for _, name := range t.Names {
			out = append(out, terminal.Text(name)+"\t"+terminal.Text(t.Source))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (s *session) templateDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <template>",
		Aliases: []string{"rm"},
		Short:   "Delete a template that no live sandbox is based on",
		Example: "caisson template delete mine",
		Args:    args("<template>"), ValidArgsFunction: s.completeTemplate,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if err := c.DeleteTemplate(ctx, got[0]); err != nil {
				return err
			}
			s.say("deleted %s\n", quoted(got[0]))
			return nil
		}),
	}
}
