package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/client"
)

const (
	// interpreterTemplate is where --out runs code when no template is named.
	interpreterTemplate = "code-interpreter-v1"
	// interpreterStart starts the code interpreter of that template.
	interpreterStart = "/.caisson/caisson-agent"
	// maxResultFiles bounds the files of a run.
	maxResultFiles   = 10_000
	interpreterLimit = 60 * time.Second
)

// results saves what a run of code shows into files of a directory.
type results struct {
	dir   *os.Root
	name  string
	count int
	files []string
	main  string
	fail  string
}

// openResults makes the directory if there is none.
func openResults(name string) (*results, error) {
	if err := os.MkdirAll(name, 0o755); err != nil {
		return nil, usage(fmt.Errorf("--out: %w", err))
	}
	dir, err := os.OpenRoot(name)
	if err != nil {
		return nil, usage(fmt.Errorf("--out: %w", err))
	}
	return &results{dir: dir, name: name}, nil
}

func (r *results) close() { _ = r.dir.Close() }

// add saves the representations of one result.
func (r *results) add(e client.CodeEvent) error {
	r.count++
	for _, b := range []struct{ suffix, text string }{
		{".png", e.PNG}, {".jpeg", e.JPEG}, {".pdf", e.PDF},
	} {
		if b.text == "" {
			continue
		}
		data, err := base64.StdEncoding.DecodeString(b.text)
		if err != nil {
			return fmt.Errorf("result %d: its %s is not base64: %w", r.count, b.suffix[1:], err)
		}
		if err := r.save(b.suffix, data); err != nil {
			return err
		}
	}
	for _, b := range []struct{ suffix, text string }{
		{".svg", e.SVG},
		{".html", e.HTML},
		{".md", e.Markdown},
		{".tex", e.LaTeX},
		{".js", e.JavaScript},
		{".json", string(e.JSON)},
		{".data.json", string(e.Data)},
		{".chart.json", string(e.Chart)},
	} {
		if b.text == "" {
			continue
		}
		if err := r.save(b.suffix, []byte(b.text)); err != nil {
			return err
		}
	}
	if len(e.Extra) > 0 {
		data, err := json.MarshalIndent(e.Extra, "", " ")
		if err != nil {
			return err
		}
		return r.save(".extra.json", append(data, '\n'))
	}
	return nil
}

func (r *results) save(suffix string, data []byte) error {
	if len(r.files) == maxResultFiles {
		return fmt.Errorf("the code shows more than %d files' worth", maxResultFiles)
	}
	name := fmt.Sprintf("result-%d%s", r.count, suffix)
	// A root does not follow links out of it, whoever made them.
	f, err := r.dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("save result: %w", err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save result: %w", err)
	}
	r.files = append(r.files, filepath.Join(r.name, name))
	return nil
}

// withInterpreter makes the interpreter's template the one of a run with --out
// that names none, if it is built.
func withInterpreter(ctx context.Context, c *connection, o *client.CreateOptions) {
	if o.Template != "" {
		return
	}
	list, err := c.Templates(ctx)
	if err != nil {
		return
	}
	if slices.ContainsFunc(list, func(t client.Template) bool { return slices.Contains(t.Names, interpreterTemplate) }) {
		o.Template = interpreterTemplate
	}
}

// interpreter reports whether the sandbox has a code interpreter, which is
// started if its template is the one for it and nothing else has.
func (s *session) interpreter(ctx context.Context, a *client.Agent, sb client.Sandbox) (bool, error) {
	if a.CodeReady(ctx) == nil {
		return true, nil
	}
	if sb.TemplateName != interpreterTemplate {
		return false, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, interpreterLimit, fmt.Errorf("the code interpreter did not start within %s", interpreterLimit))
	defer cancel()
	p, err := a.As("root").Start(ctx, client.Command{Path: interpreterStart, Args: []string{"interpreter"}})
	if err != nil {
		return false, err
	}
	defer p.Close() // it goes on
	for a.CodeReady(ctx) != nil {
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return true, nil
}

// runForResults runs code in the interpreter of the sandbox and saves what it
// shows. The text of its value is printed behind its output.
func (s *session) runForResults(ctx context.Context, a *client.Agent, sb client.Sandbox, f execFlags, code client.Code, out string) error {
	r, err := openResults(out)
	if err != nil {
		return err
	}
	defer r.close()
	timeout := time.Duration(f.timeout)
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, client.ErrTimeout)
		defer cancel()
	}
	stdout, stderr, done := s.output()
	kept := [2]*limited{{max: collected}, {max: collected}}
	if f.json {
		stdout, stderr = kept[0], kept[1]
	}
	begun := time.Now()
	err = a.RunCode(ctx, code, func(e client.CodeEvent) error { return r.take(e, stdout, stderr) })
	if err == nil && r.main != "" && !f.json {
		_, err = io.WriteString(stdout, r.main+"\n")
	}
	done()
	if err != nil {
		return timedOut(err, timeout)
	}
	exit := 0
	if r.fail != "" {
		exit = 1
	}
	if f.json {
		err := s.printJSON(struct {
			execution
			Text  string   `json:"text,omitempty"`
			Error string   `json:"error,omitempty"`
			Files []string `json:"files"`
		}{
			execution{
				Stdout: kept[0].String(), Stderr: kept[1].String(), ExitCode: exit, SandboxID: sb.ID,
				ExecutionTime: time.Since(begun).Seconds(), Truncated: kept[0].truncated || kept[1].truncated,
			}, r.main, r.fail, append([]string{}, r.files...),
		})
		return errors.Join(err, exitWith(exit))
	}
	for _, name := range r.files {
		s.say("saved %s\n", name)
	}
	return exitWith(exit)
}

// take deals with one event.
func (r *results) take(e client.CodeEvent, stdout, stderr io.Writer) error {
	var err error
	switch e.Type {
	case "stdout":
		_, err = io.WriteString(stdout, e.Text)
	case "stderr":
		_, err = io.WriteString(stderr, e.Text)
	case "error":
		r.fail = e.Name + ": " + e.Value
		_, err = io.WriteString(stderr, strings.TrimRight(e.Traceback, "\n")+"\n")
	case "result":
		if e.Main {
			r.main = e.Text
		}
		err = r.add(e)
	}
	return err
}
