package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

// connection is a client and where its key came from.
type connection struct {
	*client.Client
	keySource string
	// local is the data directory of a server found by it, or empty.
	local string
}

// connect finds the server and the key.
func (s *session) connect() (*connection, error) {
	l, err := s.load(nil)
	if err != nil {
		return nil, err
	}
	cfg := l.Config
	c, err := config.Connect(config.ConnectInputs{
		URL: s.url, KeyFile: s.keyFile, Data: cfg.Data, Listen: cfg.Listen, TLS: cfg.TLS.Enabled(), Env: s.Env,
	})
	if err != nil {
		return nil, err
	}
	opts := []client.Option{client.WithAPIKey(c.Key.Reveal()), client.WithUserAgent("caisson-cli/" + s.Version)}
	if c.CAFile != "" && strings.HasPrefix(c.URL, "https://") {
		pool, err := roots(c.CAFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithRootCAs(pool))
	}
	api, err := client.New(c.URL, opts...)
	if err != nil {
		return nil, usage(err)
	}
	conn := &connection{Client: api, keySource: c.KeySource}
	if c.Local {
		conn.local = cfg.Data
	}
	return conn, nil
}

// roots trusts the local authority beside the system's.
func roots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s has no certificate", errdefs.ErrInvalidArgument, file)
	}
	return pool, nil
}

// explain adds to an error what only this side knows.
func (c *connection) explain(err error) error {
	ce, ok := errors.AsType[*client.Error](err)
	if _, explained := errors.AsType[hinted](err); !ok || explained {
		return err
	}
	before, path, called := strings.Cut(ce.Op, "/native/v1/")
	method, route, _ := strings.Cut(before, " ")
	// Builds of templates are called on E2B's routes.
	if !called && (strings.HasPrefix(route, "/templates") || strings.HasPrefix(route, "/v2/templates") || strings.HasPrefix(route, "/v3/templates")) {
		called, path = true, "templates/"
	}
	switch {
	case !called && ce.Op != "find sandbox":
		return c.explainAgent(err, ce)
	case errors.Is(err, errdefs.ErrUnauthenticated):
		return hint(err, "the server at %s refused the key from %s", c.URL(), c.keySource)
	case !errors.Is(err, errdefs.ErrNotFound):
		return err
	case ce.Code == templateNotFound && strings.Contains(ce.Message, "caisson init"):
		return hint(err, "on the server: caisson init --data %s", c.dataOfServer())
	case ce.Code == templateNotFound, method == http.MethodPost && path == "sandboxes", strings.HasPrefix(path, "templates/"):
		return hint(err, "\"caisson template list\" shows what there is; \"caisson template build\" makes one")
	case strings.HasPrefix(path, "keys/"):
		return hint(err, "\"caisson key list\" shows what there is")
	case ce.Op == "find sandbox", strings.HasPrefix(path, "sandboxes/"):
		return hint(err, "\"caisson sandbox list --all\" shows what there is")
	}
	return err
}

// templateNotFound is what the server calls a reference to no template.
const templateNotFound = "template_not_found"

// explainAgent is explain for what came from inside a sandbox: no API key
// matters there.
func (c *connection) explainAgent(err error, ce *client.Error) error {
	switch {
	case errors.Is(err, errdefs.ErrUnauthenticated) && strings.Contains(ce.Message, "username"):
		return hint(err, "the sandbox has no such user: \"caisson sandbox exec SANDBOX -- cat /etc/passwd\" shows its users")
	case errors.Is(err, errdefs.ErrUnauthenticated):
		return hint(err, "the sandbox refused its own token: look with \"caisson sandbox status SANDBOX\"")
	case ce.Status == http.StatusBadGateway:
		return hint(err, "\"caisson sandbox list --all\" shows what there is")
	case errors.Is(err, errdefs.ErrNotFound) && ce.Op != "start process":
		return hint(err, "\"caisson sandbox exec SANDBOX -- ls -la DIR\" shows what is there")
	}
	return err
}

// dataOfServer is the data directory of the server where it is this machine's.
func (c *connection) dataOfServer() string {
	if c.local == "" {
		return "DIR"
	}
	return shellQuote(c.local)
}

// command wraps a RunE: it connects first and explains errors.
func (s *session) command(run func(ctx context.Context, c *connection, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := s.connect()
		if err != nil {
			return err
		}
		return c.explain(run(cmd.Context(), c, args))
	}
}

// running finds a sandbox by id or name that runs.
func (c *connection) running(ctx context.Context, ref string) (client.Sandbox, error) {
	sb, err := c.Find(ctx, ref)
	if err != nil {
		return sb, err
	}
	if sb.State == client.Running {
		return sb, nil
	}
	return sb, unfit(ref, sb)
}

// reachable finds a sandbox by id or name for commands and files: one that runs,
// or that traffic resumes.
func (c *connection) reachable(ctx context.Context, ref string) (client.Sandbox, error) {
	sb, err := c.Find(ctx, ref)
	if err != nil {
		return sb, err
	}
	if sb.State == client.Running || (sb.State == client.Paused && sb.AgentToken != "") {
		return sb, nil
	}
	return sb, unfit(ref, sb)
}

// unfit says in which state a sandbox is, and what to do about it.
func unfit(ref string, sb client.Sandbox) error {
	err := fmt.Errorf("%w: sandbox %s is %s%s", errdefs.ErrFailedPrecondition, quoted(ref), sb.State, because(sb))
	switch sb.State {
	case client.Paused:
		return hint(err, "it is paused: caisson sandbox resume %s", callIt(ref, sb))
	case client.Pausing:
		return hint(err, "it is being paused; afterwards: caisson sandbox resume %s", callIt(ref, sb))
	case client.Pending, client.Resuming:
		return hint(err, "it is about to run: try again")
	}
	return hint(err, "create another with \"caisson sandbox create NAME\"")
}

// callIt is what to call a sandbox in a command that is to be copied: as the user
// did, unless a shell would take that for more than a word.
func callIt(ref string, sb client.Sandbox) string {
	if strings.Trim(ref, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" {
		return ref
	}
	return sb.ID
}

// because tells why and since when a sandbox is ended or paused, for the end of
// a sentence.
func because(sb client.Sandbox) string {
	text := ""
	if sb.Reason != "" {
		text += " (" + sb.Reason + ")"
	}
	if since := cmp.Or(sb.EndedAt, sb.PausedAt); !since.IsZero() {
		text += " since " + since.Local().Format(time.DateTime)
	}
	return text
}

// args checks the number of arguments; names are their names in the usage
// line, a last one ending in "..." takes one or more, one in brackets is
// optional.
func args(names ...string) cobra.PositionalArgs {
	least, most := 0, len(names)
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
		if strings.HasSuffix(strings.Trim(n, "[]"), "...") {
			most = 1 << 30
		}
	}
	return func(_ *cobra.Command, got []string) error {
		if len(got) < least {
			return usage(fmt.Errorf("missing argument: %s", names[len(got)]))
		}
		if len(got) > most {
			return usage(fmt.Errorf("unexpected argument: %s", quoted(got[most])))
		}
		return nil
	}
}

// completeSandbox offers ids and names of sandboxes for the first argument.
func (s *session) completeSandbox(cmd *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
	return s.complete(cmd, got)
}

// completeIn offers sandboxes that are in a state.
func (s *session) completeIn(state client.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
		return s.complete(cmd, got, state)
	}
}

func (s *session) complete(cmd *cobra.Command, got []string, states ...client.State) ([]string, cobra.ShellCompDirective) {
	if len(got) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	c, err := s.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	var out []string
	for sb, err := range c.List(ctx, client.ListOptions{States: states}) {
		if err != nil {
			break
		}
		out = append(out, sb.ID+"\t"+terminal.Text(sb.Name))
		if sb.Name != "" && terminal.Text(sb.Name) == sb.Name {
			out = append(out, sb.Name+"\t"+sb.ID)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
