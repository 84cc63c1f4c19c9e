package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

func (s *session) templateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "template", Short: "Build, list and delete templates", Args: noSubcommand, RunE: showHelp}
	cmd.AddCommand(s.templateBuild(), s.templateList(), s.templateDelete())
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
	var b TemplateBuild
	var memory, disk string
	cmd := &cobra.Command{
		Use:   "build <name>",
		Short: "Build a template in this machine's data directory",
		Long: `Build a template in this machine's data directory. Without --from-tar the name must be base or code-interpreter-v1, which are built from Debian packages. A code-interpreter-v1 of this version is kept as it is without --force.
Sandboxes that run keep the build they were started from.`,
		Example: `caisson template build base --data ./data
caisson template build code-interpreter-v1 --data ./data
docker export box | caisson template build mine --from-tar -`,
		Args: args("<name>"),
	}
	flags := s.configFlags(cmd, "log-level")
	f := cmd.Flags()
	f.StringVar(&b.FromTar, "from-tar", "", "tar file with the root file system; - for standard input")
	f.StringVar(&memory, "memory", "", "default memory of its sandboxes, for example 2GiB")
	f.StringVar(&disk, "disk", "", "default disk of its sandboxes")
	f.IntVar(&b.Resources.CPUs, "cpus", 0, "default CPUs of its sandboxes")
	f.BoolVar(&b.Force, "force", false, "build again, with the packages of today")
	asJSON := f.BoolP("json", "j", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, got []string) error {
		l, err := s.load(flags())
		if err != nil {
			return err
		}
		if s.Local.BuildTemplate == nil {
			return fmt.Errorf("template build: %w", errNotHere)
		}
		b.Name = got[0]
		if err := sizes(&b.Resources, memory, disk); err != nil {
			return err
		}
		if err := tarFile(&b); err != nil {
			return err
		}
		p := s.newProgress()
		t, err := s.Local.BuildTemplate(cmd.Context(), l.Config, b, p.report)
		p.end(err)
		if err != nil {
			return err
		}
		if *asJSON {
			return s.printJSON(t)
		}
		fmt.Fprintln(s.Out, t.ID)
		s.say("template %s is ready: caisson sandbox create NAME --template %s\n", quoted(b.Name), quoted(b.Name))
		return nil
	}
	return cmd
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

func (s *session) templateDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <template>",
		Aliases: []string{"rm"},
		Short:   "Delete a template that no live sandbox is based on",
		Example: "caisson template delete mine",
		Args:    args("<template>"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if err := c.DeleteTemplate(ctx, got[0]); err != nil {
				return err
			}
			s.say("deleted %s\n", quoted(got[0]))
			return nil
		}),
	}
}
