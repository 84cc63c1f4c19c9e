package batch

import (
	"crypto/rand"
	"slices"
	"strings"
)

// language says how code is run.
type language struct {
	names   []string
	program string
	inline  []string // the options before code
	suffix  string
	// zeroth is given before the arguments of inline code where the interpreter
	// takes the first for the program's name.
	zeroth []string
}

// languageOf finds a language by name; the empty name is python.
func languageOf(name string) (language, bool) {
	for _, l := range []language{
		{names: []string{"python", "python3", "py", ""}, program: "python3", inline: []string{"-c"}, suffix: ".py"},
		{names: []string{"javascript", "js", "node"}, program: "node", inline: []string{"-e"}, suffix: ".js"},
		{names: []string{"bash", "sh"}, program: "bash", inline: []string{"-c"}, suffix: ".sh", zeroth: []string{"bash"}},
	} {
		if slices.Contains(l.names, strings.ToLower(name)) {
			return l, true
		}
	}
	return language{}, false
}

// maxArgument is how much code goes on the interpreter's command line; more is
// put into a file, because one argument has a limit in the kernel.
const maxArgument = 64 << 10

// command is what to execute for an item; script, when not empty, is where its
// code must be written before.
func (it Item) command() (cmd string, args []string, script string) {
	if it.Code == "" {
		return it.Cmd, it.Args, ""
	}
	l, _ := languageOf(it.Language) // checked before
	if len(it.Code) > maxArgument || strings.Contains(it.Code, "\x00") {
		script = "/tmp/batch-" + strings.ToLower(rand.Text()[:12]) + l.suffix
		return l.program, append([]string{script}, it.Args...), script
	}
	return l.program, slices.Concat(l.inline, []string{it.Code}, l.zeroth, it.Args), ""
}
