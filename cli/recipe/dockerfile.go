package recipe

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// dockerfile is one that is being read.
type dockerfile struct {
	Spec
	path string
	lex  *shell.Lex
	args map[string]string // given by the caller
	// env is what later instructions are expanded with: ARG and ENV.
	env               map[string]string
	from              bool
	user, workdir     bool
	entrypoint, start string
	line              int
}

// loadDockerfile turns a Dockerfile into a recipe: its steps run as root in / as
// in Docker, the command becomes the start command, and unless the file says
// otherwise sandboxes have the user "user" in the end.
func loadDockerfile(path string, data []byte, o Options) (Spec, error) {
	tree, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return Spec{}, fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	d := &dockerfile{
		Spec: Spec{Sources: map[int]Source{}}, path: path, lex: shell.NewLex(tree.EscapeToken), args: o.Args, env: map[string]string{},
	}
	for _, n := range tree.AST.Children {
		d.line = n.StartLine
		if err := d.instruction(n); err != nil {
			return Spec{}, err
		}
	}
	if !d.from {
		return Spec{}, bad(path, 0, "there is no FROM")
	}
	if !d.user {
		d.add("USER user", "USER", "user")
	}
	if !d.workdir {
		d.add("WORKDIR /home/user", "WORKDIR", "/home/user")
	}
	if cmd := strings.TrimSpace(d.entrypoint + " " + d.start); cmd != "" {
		d.Recipe.Start, d.Recipe.Ready = cmd, "sleep 20"
	}
	return d.Spec, nil
}

func (d *dockerfile) bad(format string, args ...any) error {
	return bad(d.path, d.line, format, args...)
}

func (d *dockerfile) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf("%s:%d: %s", d.path, d.line, fmt.Sprintf(format, args...)))
}

// expand replaces variables that the file sets, and quotes.
func (d *dockerfile) expand(word string) (string, error) {
	d.lex.SkipUnsetEnv, d.lex.RawQuotes = false, false
	out, _, err := d.lex.ProcessWord(word, environ(d.env))
	if err != nil {
		return "", d.bad("%v", err)
	}
	return out, nil
}

// unquote removes quotes and leaves every variable to the server, which knows
// those of the image too.
func (d *dockerfile) unquote(word string) (string, error) {
	d.lex.SkipUnsetEnv, d.lex.RawQuotes = true, false
	out, _, err := d.lex.ProcessWord(word, environ(nil))
	if err != nil {
		return "", d.bad("%v", err)
	}
	return out, nil
}

// environ gives the lexer variables.
type environ map[string]string

// Get implements shell.EnvGetter.
func (e environ) Get(key string) (string, bool) { v, ok := e[key]; return v, ok }

// Keys implements shell.EnvGetter.
func (e environ) Keys() []string { return slices.Sorted(maps.Keys(e)) }

// words are the operands of an instruction.
func words(n *parser.Node) []string {
	var out []string
	for w := n.Next; w != nil; w = w.Next {
		out = append(out, w.Value)
	}
	return out
}

func (d *dockerfile) instruction(n *parser.Node) error {
	name, args := strings.ToUpper(n.Value), words(n)
	if !d.from && name != "FROM" && name != "ARG" {
		return d.bad("%s before FROM", name)
	}
	if len(n.Heredocs) > 0 && name != "RUN" {
		return d.bad("%s with text of its own (<<) is not supported: put it into a file", name)
	}
	switch name {
	case "FROM":
		return d.fromImage(n, args)
	case "RUN":
		return d.run(n, args)
	case "COPY", "ADD":
		return d.copyFiles(name, n, args)
	case "ENV":
		return d.setEnv(args)
	case "ARG":
		return d.setArgs(args)
	case "WORKDIR", "USER":
		return d.place(name, args)
	case "CMD", "ENTRYPOINT":
		text, err := command(n, args)
		if err != nil {
			return d.bad("%s: %v", name, err)
		}
		if name == "CMD" {
			d.start = text
		} else {
			d.entrypoint = text
		}
	case "EXPOSE", "VOLUME", "LABEL", "MAINTAINER", "STOPSIGNAL", "HEALTHCHECK":
		d.note("%s has no meaning in a sandbox and is left out", name)
	case "SHELL":
		if len(args) == 0 || !strings.HasSuffix(args[0], "bash") && !strings.HasSuffix(args[0], "/sh") {
			return d.bad("SHELL: commands run in bash")
		}
		d.note("SHELL is left out: commands run in bash")
	default:
		return d.bad("%s is not supported", name)
	}
	return nil
}

func (d *dockerfile) fromImage(n *parser.Node, args []string) error {
	if d.from {
		return d.bad("a second FROM: a Dockerfile with several stages is not supported; build the stages before, or in RUN steps")
	}
	if len(args) != 1 && !(len(args) == 3 && strings.EqualFold(args[1], "AS")) {
		return d.bad("FROM takes an image")
	}
	for _, f := range n.Flags {
		if !strings.HasPrefix(f, "--platform=linux/") {
			return d.bad("FROM %s is not supported", f)
		}
		d.note("FROM %s is left out: images are those of the server's machine", f)
	}
	image, err := d.expand(args[0])
	if err != nil {
		return err
	}
	switch image {
	case "":
		return d.bad("FROM has no image: is an ARG before it without a value?")
	case "scratch":
		return d.bad("FROM scratch is not supported: a sandbox needs a shell")
	}
	d.from = true
	d.Recipe.FromImage = image
	d.env = map[string]string{} // ARG before FROM ends with it
	d.add("USER root", "USER", "root")
	d.add("WORKDIR /", "WORKDIR", "/")
	return nil
}

func (d *dockerfile) run(n *parser.Node, args []string) error {
	for _, f := range n.Flags {
		switch {
		case strings.HasPrefix(f, "--mount=type=cache"), strings.HasPrefix(f, "--mount=type=tmpfs"):
			d.note("RUN %s is left out: steps have no such mounts", f)
		case f == "--network=default":
		default:
			return d.bad("RUN %s is not supported", f)
		}
	}
	text, err := command(n, args)
	if err != nil {
		return d.bad("RUN: %v", err)
	}
	title := oneLine(text)
	for i, h := range n.Heredocs {
		if i == 0 && strings.TrimSpace(text) == "<<"+h.Name || strings.TrimSpace(text) == "<<-"+h.Name {
			text, title = h.Content, oneLine(h.Content)
			break
		}
		text += "\n" + h.Content + h.Name
	}
	d.add("RUN "+title, "RUN", text)
	return nil
}

// command is an instruction's operands as one line for a shell.
func command(n *parser.Node, args []string) (string, error) {
	if len(args) == 0 {
		return "", fmt.Errorf("there is no command")
	}
	if n.Attributes["json"] {
		var parts []string
		for _, a := range args {
			parts = append(parts, quote(a))
		}
		return strings.Join(parts, " "), nil
	}
	return strings.Join(args, " "), nil
}

// quote makes a word one for bash.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (d *dockerfile) copyFiles(name string, n *parser.Node, args []string) error {
	owner, mode := "", ""
	for _, f := range n.Flags {
		key, value, _ := strings.Cut(f, "=")
		value, err := d.expand(value)
		if err != nil {
			return err
		}
		switch key {
		case "--chown":
			owner = value
		case "--chmod":
			mode = value
		case "--link":
			d.note("%s --link is left out", name)
		case "--from":
			return d.bad("%s --from is not supported: only files of the directory can be copied", name)
		default:
			return d.bad("%s %s is not supported", name, f)
		}
	}
	if len(args) < 2 {
		return d.bad("%s takes a source and a destination", name)
	}
	for i, a := range args {
		var err error
		if args[i], err = d.expand(a); err != nil {
			return err
		}
	}
	dest := args[len(args)-1]
	sources := args[:len(args)-1]
	if len(sources) > 1 && !strings.HasSuffix(dest, "/") {
		return d.bad("%s of several sources needs a destination that ends in /", name)
	}
	for _, src := range sources {
		if name == "ADD" {
			if strings.Contains(src, "://") || strings.HasPrefix(src, "git@") {
				return d.bad("ADD of %s is not supported: fetch it in a RUN step", src)
			}
			for _, ext := range []string{".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz"} {
				if strings.HasSuffix(src, ext) {
					return d.bad("ADD unpacks %s in Docker and would not here: use COPY and a RUN step with tar", src)
				}
			}
		}
		// A leading slash means the directory of the recipe, not the machine.
		if src = strings.TrimLeft(src, "/"); src == "" {
			src = "."
		}
		d.copy(Source{Pattern: src, Dest: dest, Line: d.line}, owner, mode)
	}
	return nil
}

func (d *dockerfile) setEnv(args []string) error {
	var out, names []string
	// The parser gives name, value and separator in turn.
	for i := 0; i+1 < len(args); i += 3 {
		value, err := d.unquote(args[i+1])
		if err != nil {
			return err
		}
		known, err := d.expand(args[i+1])
		if err != nil {
			return err
		}
		out, names = append(out, args[i], value), append(names, args[i])
		d.env[args[i]] = known
	}
	if len(out) == 0 {
		return d.bad("ENV takes NAME=VALUE")
	}
	d.add("ENV "+strings.Join(names, " "), "ENV", out...)
	return nil
}

func (d *dockerfile) setArgs(args []string) error {
	var out, names []string
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		value, err := d.expand(value)
		if err != nil {
			return err
		}
		if given, ok := d.args[name]; ok {
			value = given
		}
		d.env[name] = value
		out, names = append(out, name, value), append(names, name)
	}
	if d.from { // before it they are for FROM alone
		d.add("ARG "+strings.Join(names, " "), "ARG", out...)
	}
	return nil
}

func (d *dockerfile) place(name string, args []string) error {
	if len(args) != 1 {
		return d.bad("%s takes one operand", name)
	}
	v, err := d.expand(args[0])
	if err != nil {
		return err
	}
	if name == "USER" {
		v, _, _ = strings.Cut(v, ":") // its group is the user's own
		d.user = true
	} else {
		d.workdir = true
	}
	if v == "" {
		return d.bad("%s is empty: is an ARG without a value?", name)
	}
	d.add(name+" "+v, name, v)
	return nil
}
