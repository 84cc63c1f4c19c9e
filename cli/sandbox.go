package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

func (s *session) sandboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "sandbox",
		Aliases: []string{"sb"},
		Short:   "Create sandboxes and work in them",
		Args:    noSubcommand, RunE: showHelp,
	}
	cmd.AddCommand(s.createCommand(), s.listCommand(), s.statusCommand(), s.sandboxRunCommand(), s.execCommand(),
		s.shellCommand(), s.copyCommand(), s.logsCommand(), s.egressCommand(),
		s.pauseCommand(), s.resumeCommand(), s.snapshotCreate(), s.forkCommand(), s.rollbackCommand(), s.promoteCommand(), s.diffCommand(),
		s.lineageCommand(), s.sandboxPrune(), s.metricsCommand(), s.stopCommand())
	return cmd
}

// createFlags are the flags of commands that create a sandbox.
type createFlags struct {
	template, memory, disk string
	cpus                   int
	env, metadata          []string
	allow, presets         []string
	offline                bool
}

func (f *createFlags) add(s *session, cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.template, "template", "", "template to start from (default base)")
	_ = cmd.RegisterFlagCompletionFunc("template", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) { // the flag is there
		return s.completeTemplate(cmd, nil, typed)
	})
	fl.StringVar(&f.memory, "memory", "", "memory, for example 2GiB")
	fl.StringVar(&f.disk, "disk", "", "disk, for example 10GiB")
	fl.IntVar(&f.cpus, "cpus", 0, "virtual CPUs")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "variable for every process: NAME takes it from here (for secrets), NAME=VALUE sets it")
	fl.StringArrayVar(&f.metadata, "metadata", nil, "label as NAME=VALUE")
	fl.StringSliceVar(&f.allow, "allow", nil, "hosts, *.wildcards or CIDRs that it may reach")
	fl.StringSliceVar(&f.presets, "preset", nil, "named sets of hosts that it may reach: pypi, npm, debian, github")
	fl.BoolVar(&f.offline, "no-internet", false, "reach nothing but --allow and --preset, whatever the server's default")
}

func (f *createFlags) options(s *session) (client.CreateOptions, error) {
	o := client.CreateOptions{Template: f.template, Presets: f.presets, Network: client.Network{AllowOut: f.allow}}
	o.Resources.CPUs = f.cpus
	if f.offline {
		o.Network.AllowInternet = new(false)
	}
	if err := sizes(&o.Resources, f.memory, f.disk); err != nil {
		return o, err
	}
	var err error
	if o.Env, err = pairs("--env", f.env, s.Env.Lookup); err != nil {
		return o, err
	}
	o.Metadata, err = pairs("--metadata", f.metadata, nil)
	return o, err
}

// pairs parses NAME=VALUE; a bare NAME is looked up where that is allowed.
func pairs(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for _, item := range list {
		name, value, ok := strings.Cut(item, "=")
		if !ok && lookup != nil {
			if value, ok = lookup(name); !ok {
				return nil, usage(fmt.Errorf("%s %s: the variable is not set here", flag, name))
			}
		}
		if !ok || name == "" {
			return nil, usage(fmt.Errorf("%s %q: write NAME=VALUE", flag, item))
		}
		out[name] = value
	}
	return out, nil
}

const (
	// ttlLabel keeps the minutes of --ttl, which "sandbox run" renews.
	ttlLabel   = "ttl_minutes"
	defaultTTL = 10
)

func (s *session) createCommand() *cobra.Command {
	var f createFlags
	var life lifeFlags
	var ttl int
	var asJSON bool
	var key string
	var cmd *cobra.Command
	cmd = &cobra.Command{
		Use:   "create <name>",
		Short: "Create a sandbox and print its id",
		Long: `Create a sandbox and print its id on standard output, a summary on standard error.

The sandbox ends, or is paused with --on-timeout pause, --ttl minutes after it was
created, resumed or last used by "sandbox run".

With --idempotency-key the same command, repeated within a day, prints the same
sandbox while it runs, instead of creating another.`,
		Example: `id=$(caisson sandbox create work --ttl 30)
caisson sandbox create work --idempotency-key "$CI_JOB_ID"
caisson sandbox create work --on-timeout pause --auto-resume
caisson sandbox create work --preset pypi --json | jq -r .sandbox_id`,
		Args: args("<name>"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if ttl < 1 {
				return usage(fmt.Errorf("--ttl %d: at least 1 minute", ttl))
			}
			o, err := f.options(s)
			if err != nil {
				return err
			}
			if o.Lifecycle, err = life.lifecycle(); err != nil {
				return err
			}
			if cmd.Flags().Changed("idempotency-key") && key == "" {
				return usage(errors.New("--idempotency-key: must not be empty"))
			}
			o.IdempotencyKey = key
			o.Name, o.Timeout = got[0], time.Duration(ttl)*time.Minute
			o.Metadata[ttlLabel] = fmt.Sprint(ttl)
			end := s.watchCreate(&o, asJSON)
			sb, err := c.Create(ctx, o)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(describe(sb, time.Now()))
			}
			s.say("Created sandbox: %s\n  Name: %s\n  Status: %s\n  TTL: %d minutes\n  Expires: %s\n",
				sb.ID, sb.Name, status(sb), ttl, clock(sb.EndsAt))
			_, err = fmt.Fprintln(s.Out, sb.ID)
			return err
		}),
	}
	f.add(s, cmd)
	life.add(cmd)
	cmd.Flags().IntVarP(&ttl, "ttl", "t", defaultTTL, "minutes to live")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "1 to 255 printable ASCII characters that name this create, so that repeating it is harmless")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) listCommand() *cobra.Command {
	var asJSON, all bool
	var states []string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "ps"},
		Short:   "List sandboxes, newest first",
		Example: "caisson sandbox list\ncaisson sandbox list --all --json | jq '.sandboxes | length'",
		Args:    args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			o := client.ListOptions{}
			if all {
				o.States = allStates
			}
			for _, st := range states {
				if !slices.Contains(allStates, client.State(st)) {
					return usage(fmt.Errorf("--state %q: use one of %v", st, allStates))
				}
				o.States = append(o.States, client.State(st))
			}
			var rows [][]string
			list, now := []description{}, time.Now()
			for sb, err := range c.List(ctx, o) {
				if err != nil {
					return err
				}
				list = append(list, describe(sb, now))
				ends := until(sb.EndsAt, now)
				if sb.State == client.Killed || sb.State == client.Failed {
					ends = ""
				}
				rows = append(rows, []string{sb.ID, sb.Name, string(sb.State), sb.Reason, sb.TemplateName, clock(sb.CreatedAt), ends})
			}
			if asJSON {
				return s.printJSON(map[string]any{"sandboxes": list})
			}
			if len(rows) == 0 {
				s.say("No sandboxes found.\n")
				return nil
			}
			return s.table([]string{"ID", "NAME", "STATE", "REASON", "TEMPLATE", "CREATED", "ENDS IN"}, rows)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended ones too")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only these states, for example running,failed")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

var allStates = []client.State{
	client.Pending, client.Running, client.Pausing, client.Paused, client.Resuming, client.Killing, client.Killed, client.Failed,
}

func (s *session) statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "status <sandbox>",
		Aliases:           []string{"inspect"},
		Short:             "Show one sandbox, also one that is paused or has ended",
		Example:           "caisson sandbox status work",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			now := time.Now()
			d := describe(sb, now)
			if asJSON {
				return s.printJSON(d)
			}
			ends, paused := "", ""
			if sb.State == client.Running {
				ends = clock(sb.EndsAt) + " (in " + until(sb.EndsAt, now) + ")"
			}
			if !sb.PausedAt.IsZero() {
				paused = clock(sb.PausedAt) + " (" + until(now, sb.PausedAt) + " ago)"
			}
			if sb.State == client.Paused {
				defer s.say("hint: it is paused: caisson sandbox resume %s\n", callIt(got[0], sb))
			}
			r := sb.Resources
			return s.fields("Sandbox:", sb.ID, "Name:", sb.Name, "State:", string(sb.State), "Reason:", sb.Reason,
				"Template:", sb.TemplateName+" ("+sb.Template+")", "Provider:", sb.Provider,
				"Created:", clock(sb.CreatedAt), "Ends:", ends, "Paused:", paused, "Saved:", savedText(sb.Saved), "Ended:", clock(sb.EndedAt),
				"On timeout:", lifecycleText(sb.Lifecycle),
				"Uptime:", (time.Duration(d.Uptime) * time.Second).String(),
				"Limits:", fmt.Sprintf("%d MiB memory, %d CPUs, %d MiB disk, %d processes", r.MemoryMiB, r.CPUs, r.DiskMiB, r.Processes),
				"Egress:", egressText(sb.Egress))
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) stopCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "stop <sandbox>...",
		Aliases:           []string{"rm", "kill"},
		Short:             "End sandboxes; one that has ended already is no error",
		Example:           "caisson sandbox stop work",
		Args:              args("<sandbox>..."),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			var problems []error
			stopped := []description{}
			for _, ref := range got {
				sb, err := s.stop(ctx, c, ref)
				if err != nil {
					problems = append(problems, err)
					continue
				}
				stopped = append(stopped, describe(sb, time.Now()))
			}
			if asJSON && len(got) == 1 && len(stopped) == 1 {
				return s.printJSON(stopped[0])
			}
			if asJSON {
				problems = append(problems, s.printJSON(map[string]any{"sandboxes": stopped}))
			}
			return errors.Join(problems...)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) stop(ctx context.Context, c *connection, ref string) (client.Sandbox, error) {
	sb, err := c.Find(ctx, ref)
	if err != nil {
		return sb, err
	}
	if sb.State == client.Killed || sb.State == client.Failed {
		s.say("%s had ended before%s\n", sb.ID, because(sb))
		return sb, nil
	}
	if err := c.Kill(ctx, sb.ID); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return sb, err
	}
	if after, err := c.Get(ctx, sb.ID); err == nil {
		sb = after
	} else {
		sb.State = client.Killed
	}
	s.say("Stopped sandbox: %s\n", sb.ID)
	return sb, nil
}

func egressText(p client.EgressPolicy) string {
	var allowed []string
	for _, r := range p.Rules {
		if r.Verdict == "allow" {
			allowed = append(allowed, r.Hosts...)
		}
	}
	text := p.Default
	if len(allowed) > 8 {
		allowed = append(allowed[:8], "…")
	}
	if len(allowed) > 0 {
		text += "; allows " + strings.Join(allowed, ", ")
	}
	return text
}
