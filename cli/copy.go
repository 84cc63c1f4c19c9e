package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// place is one end of a copy.
type place struct {
	sandbox string // empty for this machine
	path    string // "-" on this machine is a standard stream
}

// parsePlace reads SANDBOX:PATH; everything else is a local path. A local
// name with a colon is written ./NAME.
func parsePlace(s string) place {
	ref, p, ok := strings.Cut(s, ":")
	if !ok || ref == "" || strings.ContainsAny(ref, "/.\\") {
		return place{path: s}
	}
	return place{sandbox: ref, path: p}
}

func (s *session) copyCommand() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "cp <source> <destination>",
		Short: "Copy files and directories into and out of a sandbox",
		Long: `Copy files and directories between this machine and a sandbox; one side is SANDBOX:PATH. A relative path in the sandbox begins at the user's home. "-" is standard input or output.

Into an existing directory, or one written with a final slash, the source keeps its name.`,
		Example: `caisson sandbox cp data.csv work:/home/user/
caisson sandbox cp work:/home/user/results ./results
caisson sandbox cp work:report.txt -`,
		Args: args("<source>", "<destination>"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			from, to := parsePlace(got[0]), parsePlace(got[1])
			if (from.sandbox == "") == (to.sandbox == "") {
				return usage(fmt.Errorf("exactly one of source and destination must be SANDBOX:PATH"))
			}
			sb, err := c.reachable(ctx, from.sandbox+to.sandbox)
			if err != nil {
				return err
			}
			t := transfer{s: s, agent: c.Agent(sb).As(user)}
			if to.sandbox != "" {
				return t.up(ctx, from.path, to.path)
			}
			return t.down(ctx, from.path, to.path)
		}),
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "user in the sandbox who reads, or owns what is written")
	return cmd
}

// transfer copies between this machine and one sandbox.
type transfer struct {
	s     *session
	agent *client.Agent
}

func (t transfer) up(ctx context.Context, local, remote string) error {
	if local == "-" {
		if remote == "" || strings.HasSuffix(remote, "/") {
			return usage(fmt.Errorf("standard input needs a file name in the sandbox"))
		}
		return t.agent.WriteFile(ctx, remote, t.s.In, -1)
	}
	st, err := os.Stat(local)
	if err != nil {
		return usage(err)
	}
	into, err := t.isDir(ctx, remote)
	if err != nil {
		return err
	}
	if into || remote == "" || strings.HasSuffix(remote, "/") {
		abs, err := filepath.Abs(local)
		if err != nil {
			return err
		}
		remote = path.Join(remote, filepath.Base(abs))
	}
	if st.IsDir() {
		return t.upTree(ctx, local, remote)
	}
	if !st.Mode().IsRegular() {
		return usage(fmt.Errorf("%s is not a regular file; \"-\" copies standard input", local))
	}
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.watched("copy to "+remote, st.Size(), f, func(r io.Reader) error {
		return t.agent.WriteFile(ctx, remote, r, st.Size())
	})
}

// isDir reports whether a path in the sandbox is a directory; one that does
// not exist is none.
func (t transfer) isDir(ctx context.Context, remote string) (bool, error) {
	f, err := t.agent.Stat(ctx, remote)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return f.Type == client.Directory, err
}

func (t transfer) down(ctx context.Context, remote, local string) error {
	f, err := t.agent.Stat(ctx, remote)
	if err != nil {
		return err
	}
	if f.Type == client.Directory && local == "-" {
		return usage(fmt.Errorf("%s is a directory: it cannot go to standard output", remote))
	}
	if local != "-" {
		if st, err := os.Stat(local); strings.HasSuffix(local, "/") || (err == nil && st.IsDir()) {
			name := path.Base(f.Path)
			if !filepath.IsLocal(name) {
				return usage(fmt.Errorf("%s has no name of its own: name the destination", remote))
			}
			local = filepath.Join(local, name)
		}
	}
	if f.Type == client.Directory {
		return t.downTree(ctx, f.Path, local)
	}
	body, size, err := t.agent.ReadFile(ctx, remote)
	if err != nil {
		return err
	}
	defer body.Close()
	if local == "-" {
		stdout, _, done := t.s.output()
		defer done()
		_, err := io.Copy(stdout, body)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(local), 0o755); err != nil {
		return err
	}
	return t.watched("copy to "+local, size, body, func(r io.Reader) error { return writeLocal(local, r, size) })
}

// writeLocal writes a file whole or not at all. size is -1 when not known.
func writeLocal(name string, r io.Reader, size int64) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".caisson-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	n, err := io.Copy(tmp, r)
	if err == nil && size >= 0 && n != size {
		err = fmt.Errorf("%s: got %d of %d bytes", name, n, size)
	}
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// bigFile is where a copy begins to show its progress.
const bigFile = 8 << 20

// watched shows the progress of a big copy.
func (t transfer) watched(step string, size int64, r io.Reader, do func(io.Reader) error) error {
	if size >= 0 && size < bigFile || !terminal.Is(t.s.Err) {
		return do(r)
	}
	p := t.s.newProgress()
	p.report(step, "")
	err := do(&counter{r: r, size: size, tell: func(text string) { p.report("", text) }})
	p.end(err)
	return err
}

// counter tells how much was read, every MiB.
type counter struct {
	r             io.Reader
	n, told, size int64
	tell          func(string)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n-c.told >= 1<<20 {
		c.told = c.n
		text := bytesText(c.n)
		if c.size > 0 {
			text += " of " + bytesText(c.size)
		}
		c.tell(text)
	}
	return n, err
}
