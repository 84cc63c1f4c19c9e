package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

const (
	// maxItems bounds a file of items, in bytes.
	maxItems = 16 << 20
	// maxLabel bounds the name of an item that is made of its argument.
	maxLabel = 100
	// maxFailed is the exit code for as many failed items or more.
	maxFailed = 100
	// itemMark stands before the items, itemPlace is where one goes.
	itemMark, itemPlace = ":::", "{}"
)

// parallel are the flags of a run of many.
type parallel struct {
	n        int
	file     string
	failFast bool
}

func (p *parallel) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntVar(&p.n, "parallel", 0, "run once for each item, so many at a time")
	fl.StringVar(&p.file, "items", "", "file with one item a line, as text or JSON; - is standard input")
	fl.BoolVar(&p.failFast, "fail-fast", false, "start no more items once one has failed")
}

func (p *parallel) given() bool { return p.n != 0 || p.file != "" }

func (s *session) runParallel(ctx context.Context, c *connection, create createFlags, f execFlags, co code, p parallel, argv []string) error {
	if p.n < 0 {
		return usage(fmt.Errorf("--parallel %d: at least 1", p.n))
	}
	o, err := create.options(s)
	if err != nil {
		return err
	}
	items, err := s.batchItems(co, p.file, argv)
	if err != nil {
		return err
	}
	b := client.BatchOptions{
		Template: o.Template, Resources: o.Resources, Network: o.Network, Presets: o.Presets, Metadata: o.Metadata,
		Env: o.Env, Dir: f.dir, User: f.user, Concurrency: p.n, Timeout: time.Duration(f.timeout), StopOnError: p.failFast,
		Items: items,
	}
	stdout, stderr, done := s.output()
	defer done()
	show := shown{s: s, stdout: stdout, stderr: stderr, json: f.json, rows: make([][]string, len(items))}
	for _, it := range items {
		show.width = min(max(show.width, len(it.ID)), 24)
	}
	for ev, err := range c.Batch(ctx, b) {
		if err == nil && ev.Result != nil {
			err = show.result(*ev.Result)
		}
		if ctx.Err() != nil {
			return errInterrupted
		}
		if err != nil {
			return err
		}
		if ev.Summary != nil {
			return errors.Join(show.summary(*ev.Summary), exitWith(min(ev.Summary.Failed, maxFailed)))
		}
	}
	return nil
}

// batchItems makes the items of the command line and of the file.
func (s *session) batchItems(co code, file string, argv []string) ([]client.BatchItem, error) {
	var behind []string
	if i := slices.Index(argv, itemMark); i >= 0 {
		argv, behind = argv[:i], argv[i+1:]
	}
	if slices.Contains(behind, itemMark) {
		return nil, usage(fmt.Errorf("%s stands there twice: name all items behind one", itemMark))
	}
	t := itemTemplate{argv: argv, names: map[string]bool{}}
	if co.given() {
		if len(argv) > 0 {
			return nil, usage(fmt.Errorf("give a command or code, not both: %s", quoted(argv[0])))
		}
		if file == "-" && (co.text == "-" || co.file == "-") {
			return nil, usage(fmt.Errorf("--items and the code cannot both be standard input"))
		}
		lang, err := languageOf(co.language)
		if err != nil {
			return nil, err
		}
		if t.code, _, err = co.read(s); err != nil {
			return nil, err
		}
		t.language = lang.names[0]
	}
	for _, arg := range behind {
		if err := t.text(arg); err != nil {
			return nil, err
		}
	}
	if file != "" {
		if err := s.readItems(file, &t); err != nil {
			return nil, err
		}
	}
	if len(t.items) == 0 {
		return nil, usage(fmt.Errorf("no items: name them behind %s or with --items FILE", itemMark))
	}
	return t.items, nil
}

func (s *session) readItems(file string, t *itemTemplate) error {
	in := s.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return usage(fmt.Errorf("--items: %w", err))
		}
		defer f.Close()
		in = f
	}
	lines := bufio.NewScanner(io.LimitReader(in, maxItems))
	lines.Buffer(nil, maxItems)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSuffix(lines.Text(), "\r")
		var err error
		switch {
		case strings.TrimSpace(line) == "":
		case strings.HasPrefix(line, "{"):
			err = t.object([]byte(line))
		default:
			err = t.text(line)
		}
		if err != nil {
			return usage(fmt.Errorf("--items: line %d: %w", n, err))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("--items: %w", err)
	}
	return nil
}

// itemTemplate makes items of one command, or one piece of code.
type itemTemplate struct {
	argv           []string
	code, language string
	items          []client.BatchItem
	names          map[string]bool
}

// text adds the item of one argument.
func (t *itemTemplate) text(arg string) error {
	it := client.BatchItem{ID: t.name(arg)}
	if err := t.fill(&it, []string{arg}); err != nil {
		return err
	}
	t.items = append(t.items, it)
	return nil
}

// object adds an item in JSON. One without a command or code of its own gets
// ours, with its arguments.
func (t *itemTemplate) object(line []byte) error {
	var it client.BatchItem
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&it); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more behind the object")
	}
	if it.ID == "" {
		it.ID = t.name(strings.Join(append([]string{it.Cmd}, it.Args...), " "))
	}
	t.names[it.ID] = true
	if it.Cmd == "" && it.Code == "" {
		if err := t.fill(&it, it.Args); err != nil {
			return err
		}
	}
	t.items = append(t.items, it)
	return nil
}

// fill gives an item the command or the code, with args in it.
func (t *itemTemplate) fill(it *client.BatchItem, args []string) error {
	if t.code != "" {
		it.Code, it.Language, it.Args = t.code, t.language, args
		return nil
	}
	if len(t.argv) == 0 {
		return errors.New("no command for it: name one, such as -- sh -c {}")
	}
	all, placed := slices.Clone(t.argv), false
	for i, a := range all {
		if strings.Contains(a, itemPlace) {
			all[i], placed = strings.ReplaceAll(a, itemPlace, strings.Join(args, " ")), true
		}
	}
	if !placed {
		all = append(all, args...)
	}
	it.Cmd, it.Args = all[0], all[1:]
	return nil
}

// name makes a name of an item from its text, unlike those before.
func (t *itemTemplate) name(text string) string {
	base := strings.TrimSpace(terminal.Text(text))
	if len(base) > maxLabel {
		base = strings.ToValidUTF8(base[:maxLabel], "")
	}
	name := base
	for n := len(t.items) + 1; name == "" || t.names[name]; n++ {
		name = strings.TrimSpace(base + " #" + strconv.Itoa(n))
	}
	t.names[name] = true
	return name
}

// shown is what the user sees of results.
type shown struct {
	s              *session
	stdout, stderr io.Writer
	json           bool
	width          int
	rows           [][]string // by index
}

// itemResult is a result as --json prints it.
type itemResult struct {
	ID    string `json:"id"`
	Index int    `json:"index"`
	execution
	WaitTime float64    `json:"wait_time"`
	Files    []itemFile `json:"files,omitempty"`
	Error    string     `json:"error,omitempty"`
}

type itemFile struct {
	Path    string `json:"path"`
	Content []byte `json:"content,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (w *shown) result(r client.BatchResult) error {
	code, problem := codeOf(r.Exit), ""
	switch ce, _ := errors.AsType[*client.Error](r.Err); {
	case ce == nil && r.Exit.Reason != "":
		problem = r.Exit.Reason
	case ce == nil && r.Exit.Code < 0:
		problem = r.Exit.Status
	case ce == nil:
	case ce.Code == "timeout":
		code, problem = exitTimeout, ce.Error()
	default:
		code, problem = exitOurs, ce.Error()
	}
	if r.Index >= 0 && r.Index < len(w.rows) {
		w.rows[r.Index] = []string{r.ID, strconv.Itoa(code), short(r.Took), problem}
	}
	if w.json {
		return w.printResult(r, code)
	}
	label := fmt.Sprintf("%-*s | ", w.width, terminal.Text(r.ID))
	err := prefixed(w.stdout, label, r.Stdout)
	if err == nil {
		err = prefixed(w.stderr, label, r.Stderr)
	}
	return err
}

func (w *shown) printResult(r client.BatchResult, code int) error {
	out := itemResult{ID: r.ID, Index: r.Index, WaitTime: r.Waited.Seconds(), execution: execution{
		Stdout: r.Stdout, Stderr: r.Stderr, ExitCode: code, ExecutionTime: r.Took.Seconds(), SandboxID: r.Sandbox,
		Status: r.Exit.Status, Reason: r.Exit.Reason, Truncated: r.Truncated,
	}}
	if r.Err != nil {
		out.Error = plain(r.Err)
	}
	for _, f := range r.Files {
		file := itemFile{Path: f.Path, Content: f.Content}
		if f.Err != nil {
			file.Error = plain(f.Err)
		}
		out.Files = append(out.Files, file)
	}
	return w.s.printLine(out)
}

// prefixed writes text line by line behind a label, in one write.
func prefixed(w io.Writer, label, text string) error {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(label)
		b.WriteString(line)
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// summary ends what was shown with a table, which is words.
func (w *shown) summary(sum client.BatchSummary) error {
	if w.json || w.s.quiet {
		return nil
	}
	rows := slices.DeleteFunc(w.rows, func(row []string) bool { return row == nil })
	if err := terminal.Table(w.s.Err, []string{"ITEM", "EXIT", "TIME", "PROBLEM"}, rows); err != nil {
		return err
	}
	skipped := ""
	if sum.Skipped > 0 {
		skipped = fmt.Sprintf(", %d not started", sum.Skipped)
	}
	w.s.say("%d succeeded, %d failed%s (%s)\n", sum.Succeeded, sum.Failed, skipped, short(time.Duration(sum.DurationMS)*time.Millisecond))
	return nil
}
