package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/recipe"
	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

func (s *session) templateExport() *cobra.Command {
	var out string
	var memory, asJSON bool
	cmd := &cobra.Command{
		Use:   "export <template>",
		Short: "Write a template to a file",
		Long: `Write a template, [team/]name[:tag], to a file: an OCI image layout in a tar file, which "template import" and tools for container images read.

With --memory the file also has the memory in which the start command runs. Only the same team of the same installation can take that up; elsewhere the start command is run anew. It holds whatever that command has in memory.`,
		Example: "caisson template export mine -o mine.tar\ncaisson template export mine:v2 -o - | ssh other caisson template import - --name mine",
		Args:    args("<template>"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if out == "" {
				return usage(errors.New("--output says which file to write; - is standard output"))
			}
			return s.exportTo(ctx, c, got[0], out, memory, asJSON)
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&out, "output", "o", "", "file to write; - for standard output")
	f.BoolVar(&memory, "memory", false, "add the saved memory of the start command")
	f.BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// exportTo writes an archive, complete or not at all.
func (s *session) exportTo(ctx context.Context, c *connection, ref, to string, memory, asJSON bool) (err error) {
	var w io.Writer = s.Out
	var file *output
	if to == "-" {
		if terminal.Is(s.Out) {
			return usage(errors.New("an archive is not for a terminal: give --output FILE"))
		}
		if asJSON {
			return usage(errors.New("--json and the archive both want standard output: give --output FILE"))
		}
	} else {
		if file, err = openOutput(to); err != nil {
			return err
		}
		defer file.drop()
		w = file
	}
	p := s.newProgress()
	defer func() { p.end(err) }()
	p.report("read "+ref, "")
	body, size, err := c.ExportTemplate(ctx, ref, memory)
	if err != nil {
		return err
	}
	defer body.Close()
	p.report("write "+to, "")
	n, err := io.Copy(w, &measured{r: body, p: p, total: size})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("the archive is incomplete, %d of %d bytes: %w", n, size, err)
	}
	if file == nil {
		return nil
	}
	if err := file.keep(); err != nil {
		return err
	}
	if asJSON {
		return s.printJSON(map[string]any{"template": ref, "file": to, "bytes": n, "memory": memory})
	}
	return nil
}

// output is a file that an archive is written to.
type output struct {
	*os.File
	// name is what it is called once it is complete; empty for what is written to as
	// it is, a device or a pipe.
	name string
}

// openOutput opens what a path names. A file is made beside the one that is there, with
// links followed, and takes its place in the end; a device or a pipe stays what it is.
func openOutput(to string) (*output, error) {
	if at, err := filepath.EvalSymlinks(to); err == nil {
		to = at
	}
	switch fi, err := os.Stat(to); {
	case err == nil && fi.IsDir():
		return nil, usage(fmt.Errorf("%s is a directory: name the file in it", to))
	case err == nil && !fi.Mode().IsRegular():
		f, err := os.OpenFile(to, os.O_WRONLY, 0)
		return &output{File: f}, err
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".caisson-export-*")
	return &output{File: f, name: to}, err
}

// keep gives a complete file its name. It stays its owner's alone: it has the
// environment of a template and perhaps memory.
func (o *output) keep() error {
	if o.name == "" {
		return o.Close()
	}
	if err := o.Sync(); err != nil {
		return err
	}
	return os.Rename(o.Name(), o.name)
}

// drop closes the file, and removes it unless it was kept.
func (o *output) drop() {
	_ = o.Close()
	if o.name != "" {
		_ = os.Remove(o.Name()) // it has its name by then, or is of no use
	}
}

// measured shows how much has come.
type measured struct {
	r        io.Reader
	p        *progress
	n, total int64
	shown    time.Time
}

// Read implements io.Reader.
func (m *measured) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n += int64(n)
	if now := time.Now(); now.Sub(m.shown) > 100*time.Millisecond || err != nil {
		m.shown = now
		m.p.report("", bytesText(m.n)+" of "+bytesText(m.total))
	}
	return n, err
}

func (s *session) templateImport() *cobra.Command {
	var name string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "import <file>",
		Short: "Make a template of a file that was exported, or of a container image's",
		Long: `Make a template of a file that "template export" wrote, of an OCI layout in a tar file, or of what "docker save" writes.

The name is that in the file unless --name is given; a template of the team with that name gets a new build. A start command is run again on this server, unless the file has memory that this installation saved for this team.`,
		Example: "caisson template import mine.tar\ndocker save -o image.tar python:3.13 && caisson template import image.tar --name py",
		Args:    args("<file>"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			return s.importFrom(ctx, c, got[0], name, asJSON)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "name of the template, as [team/]name[:tag] (default: that in the file)")
	f.BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) importFrom(ctx context.Context, c *connection, from, name string, asJSON bool) error {
	file, size, err := s.archiveFile(ctx, from)
	if err != nil {
		return err
	}
	defer file.Close()
	p := s.newProgress()
	out, err := s.importFile(ctx, c, file, size, name, p)
	p.end(err)
	if err != nil {
		return err
	}
	for _, n := range out.Notes {
		s.say("note: %s\n", n)
	}
	if asJSON {
		return s.printJSON(out)
	}
	fmt.Fprintln(s.Out, out.ID)
	if name == "" && len(out.Names) > 0 {
		if name = out.Names[0]; len(out.Tags) > 0 && !slices.Contains(out.Tags, "default") {
			name += ":" + out.Tags[0]
		}
	}
	s.say("template %s is ready: caisson sandbox create NAME --template %s\n", quoted(name), quoted(name))
	return nil
}

// archiveFile opens a file, or keeps standard input in one: its length must be
// known before it is sent.
func (s *session) archiveFile(ctx context.Context, from string) (*os.File, int64, error) {
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return nil, 0, usage(err)
		}
		fi, err := f.Stat()
		if err == nil && !fi.Mode().IsRegular() {
			err = usage(fmt.Errorf("%s is not a file", from))
		}
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		return f, fi.Size(), nil
	}
	f, err := os.CreateTemp("", "caisson-import-*")
	if err != nil {
		return nil, 0, err
	}
	n, err := io.Copy(f, s.In)
	if err = errors.Join(err, os.Remove(f.Name())); err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, n, nil
}

// importFile sends an archive and waits until its template can be created from.
func (s *session) importFile(ctx context.Context, c *connection, file io.Reader, size int64, name string, p *progress) (client.ImportedTemplate, error) {
	p.report("send", "")
	sent := &measured{r: file, p: p, total: size}
	out, err := c.ImportTemplate(ctx, name, sent, size)
	if err != nil || out.Status == client.BuildReady {
		return out, err
	}
	b := built{RegisteredBuild: client.RegisteredBuild{TemplateID: out.ID, BuildID: out.BuildID}}
	err = s.follow(ctx, c, recipe.Spec{}, &b, p)
	out.Status = b.Status
	if ctx.Err() == nil {
		return out, s.buildFailed(err, b)
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if cerr := c.CancelBuild(after, out.ID, out.BuildID); cerr != nil && !errors.Is(cerr, errdefs.ErrConflict) {
		return out, errors.Join(err, fmt.Errorf("the build goes on: %w", cerr))
	}
	return out, err
}
