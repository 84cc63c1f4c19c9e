package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/telemetry"
)

// serverFlags are the settings that have a flag of their own; the others are
// set with --set.
var serverFlags = []struct{ name, key, usage string }{
	{"listen", "listen", "address and port to listen on"},
	{"public-domain", "public_domain", "domain under which PORT-ID.DOMAIN reaches sandbox ports"},
	{"tls-cert", "tls.cert", "certificate file, for DOMAIN and *.DOMAIN"},
	{"tls-key", "tls.key", "private key file of --tls-cert"},
	{"egress-default", "egress.default", "what sandboxes may reach unless named: allow or deny"},
	{"egress-presets", "egress.presets", "sets of hosts that every sandbox may reach: pypi,npm,debian,github"},
	{"database", "database", "PostgreSQL URL (default: SQLite in the data directory)"},
	{"log-level", "log.level", "debug, info, warn or error"},
	{"log-format", "log.format", "auto, text or json"},
	{"metrics-listen", "metrics.listen", "separate address for GET /metrics"},
}

// configFlags adds the flags of settings to a command and returns what reads
// them after parsing.
func (s *session) configFlags(cmd *cobra.Command, names ...string) func() map[string]config.Flag {
	values := map[string]*pflag.Flag{}
	f := cmd.Flags()
	for _, sf := range serverFlags {
		for _, n := range names {
			if n == sf.name || n == "all" {
				f.String(sf.name, "", sf.usage)
				values[sf.key] = f.Lookup(sf.name)
			}
		}
	}
	f.StringArrayVar(&s.sets, "set", nil, "any setting as KEY=VALUE; may be repeated")
	return func() map[string]config.Flag {
		out := map[string]config.Flag{}
		for key, fl := range values {
			if fl.Changed {
				out[key] = config.Flag{Name: "--" + fl.Name, Value: fl.Value.String()}
			}
		}
		return out
	}
}

func (s *session) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: API and sandbox traffic on one listener",
		Long: `Run the server until it is told to stop. Sandboxes go on without it and are taken over at the next start.

The first start makes an API key, prints it once and writes it to DIR/api-key.`,
		Example: `caisson serve --data ./data --listen 127.0.0.1:3000
caisson serve --data ./data --egress-default allow
caisson serve --data ./data --egress-presets pypi,npm --set limits.memory_mib=2GiB`,
		Args: args(),
	}
	flags := s.configFlags(cmd, "all")
	selfSigned := cmd.Flags().Bool("tls-self-signed", false, "make a certificate authority and serve TLS with it")
	destroy := cmd.Flags().Bool("destroy-on-exit", false, "end every sandbox and the engine when the server stops, for demonstrations and tests")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		given := flags()
		if *selfSigned {
			given["tls.self_signed"] = config.Flag{Name: "--tls-self-signed", Value: "true"}
		}
		return s.serve(cmd.Context(), given, *destroy)
	}
	return cmd
}

func (s *session) serve(ctx context.Context, flags map[string]config.Flag, destroyOnExit bool) (err error) {
	l, err := s.load(flags)
	if err != nil {
		return err
	}
	if s.Local.Serve == nil {
		return fmt.Errorf("serve: %w", errNotHere)
	}
	cfg := l.Config
	p := s.newProgress()
	begun := true
	endProgress := func(err error) {
		if begun {
			begun = false
			p.end(err)
		}
	}
	urlFile := config.URLFile(cfg.Data)
	mine := ""
	defer func() {
		endProgress(err)
		removeIf(urlFile, mine)
	}()
	err = s.Local.Serve(ctx, cfg, ServeOptions{
		Version:       s.Version,
		Log:           telemetry.NewLogger(cfg.Log, s.Err),
		Metrics:       telemetry.NewMetrics(s.Version),
		DestroyOnExit: destroyOnExit,
		Progress:      p.report,
		Ready: func(r Ready) {
			endProgress(nil)
			mine = r.URL + "\n"
			if werr := renameio.WriteFile(urlFile, []byte(mine), 0o644); werr != nil {
				s.sayAlways("warning: commands on this machine will not find the server by itself: %s\n", werr)
			}
			s.banner(cfg, r)
		},
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// removeIf removes the file when it still has this content: another server
// may have taken the directory over.
func removeIf(path, content string) {
	if content == "" {
		return
	}
	if data, err := os.ReadFile(path); err == nil && string(data) == content {
		_ = os.Remove(path)
	}
}

// banner prints how to use the server that has become ready.
func (s *session) banner(cfg config.Config, r Ready) {
	key := config.KeyFile(cfg.Data)
	// A server that cannot create sandboxes yet goes on: init works beside it
	// and needs no restart, a supervisor would only start it over and over, and
	// /health keeps traffic away meanwhile. But it must not say that it is ready.
	state := "is ready at"
	if r.Problem != nil {
		state = "listens, but cannot create sandboxes yet, at"
	}
	fmt.Fprintf(s.Out, "caisson %s %s %s\n", s.Version, state, r.URL)
	if !r.NewKey.IsZero() {
		fmt.Fprintf(s.Out, "API key (shown once, also in %s): %s\n", key, r.NewKey.Reveal())
	}
	fmt.Fprintf(s.Out, "\nFor programs that use an E2B SDK:\n")
	fmt.Fprintf(s.Out, "  export E2B_API_KEY=\"$(cat %s)\"\n", shellQuote(key))
	fmt.Fprintf(s.Out, "  export E2B_API_URL=%s\n  export E2B_SANDBOX_URL=%s\n", r.URL, r.URL)
	if r.CAFile != "" {
		ca := shellQuote(r.CAFile)
		fmt.Fprintf(s.Out, "  export NODE_EXTRA_CA_CERTS=%s\n  export SSL_CERT_FILE=%s\n", ca, ca)
	}
	switch {
	case errors.Is(r.Problem, ErrNoTemplate):
		fmt.Fprintf(s.Out, "\nNo template is built in %s. Next, in another terminal:\n  caisson init --data %s\nThis server need not be restarted then.\n",
			terminal.Text(cfg.Data), shellQuote(cfg.Data))
		return
	case r.Problem != nil:
		fmt.Fprintf(s.Out, "\nNo sandbox can be created: %s\n  caisson doctor --data %s   checks this machine\n", terminal.Text(r.Problem.Error()), shellQuote(cfg.Data))
		return
	}
	fmt.Fprintf(s.Out, "\nTry: caisson run --data %s -- python3 -c 'print(6 * 7)'\n", shellQuote(cfg.Data))
	if cfg.Egress.Default == "deny" && len(cfg.Egress.Presets)+len(cfg.Egress.Allow) == 0 {
		fmt.Fprintf(s.Out, "Sandboxes reach no network: see --egress-default and --egress-presets.\n")
	}
}

// shellQuote quotes a path for a POSIX shell where it needs it.
func shellQuote(path string) string {
	path = filepath.Clean(path)
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%:") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(terminal.Text(path), "'", `'\''`) + "'"
}
