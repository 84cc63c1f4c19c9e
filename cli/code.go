package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/caisson-dev/caisson/client"
)

// maxCode bounds code given by -c or -f.
const maxCode = 64 << 20

// maxArgument is how much code goes on the command line of the interpreter;
// more is put into a file, because one argument has a limit in the kernel.
const maxArgument = 64 << 10

type language struct {
	names   []string
	program string
	inline  string // the option that takes code
	suffix  string
}

var languages = []language{
	{[]string{"python", "python3", "py"}, "python3", "-c", ".py"},
	{[]string{"javascript", "js", "node"}, "node", "-e", ".js"},
	{[]string{"bash", "sh"}, "bash", "-c", ".sh"},
}

func languageOf(name string) (language, error) {
	for _, l := range languages {
		for _, n := range l.names {
			if strings.EqualFold(n, name) {
				return l, nil
			}
		}
	}
	return language{}, usage(fmt.Errorf("language %q is not supported: use python, javascript (js) or bash (sh)", name))
}

// code is what -c, -f and -l of a command line give.
type code struct {
	text, file, language string
}

// given reports whether the flags name code at all.
func (c code) given() bool { return c.text != "" || c.file != "" }

// read returns the code; "-" is standard input.
func (c code) read(s *session) (text string, fromStdin bool, err error) {
	switch {
	case c.text == "-" || (c.text == "" && c.file == "-"):
		data, err := io.ReadAll(io.LimitReader(s.In, maxCode+1))
		return limitCode(data, true, err)
	case c.text != "":
		return c.text, false, nil
	}
	f, err := os.Open(c.file)
	if err != nil {
		return "", false, usage(fmt.Errorf("--file: %w", err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCode+1))
	return limitCode(data, false, err)
}

func limitCode(data []byte, fromStdin bool, err error) (string, bool, error) {
	if err != nil {
		return "", false, fmt.Errorf("read code: %w", err)
	}
	if len(data) > maxCode {
		return "", false, usage(fmt.Errorf("the code is larger than %d MiB", maxCode>>20))
	}
	return string(data), fromStdin, nil
}

// command makes the command that runs text. Long code is written to a file in
// the sandbox, which cleanup removes.
func (l language) command(ctx context.Context, a *client.Agent, text string) (cmd client.Command, cleanup func(), err error) {
	if len(text) <= maxArgument && !strings.Contains(text, "\x00") {
		return client.Command{Path: l.program, Args: []string{l.inline, text}}, func() {}, nil
	}
	path := "/tmp/caisson-" + strings.ToLower(rand.Text()[:12]) + l.suffix
	if err := a.WriteFile(ctx, path, strings.NewReader(text), int64(len(text))); err != nil {
		return client.Command{}, nil, fmt.Errorf("put the code into the sandbox: %w", err)
	}
	cleanup = func() { _ = a.Remove(context.WithoutCancel(ctx), path) }
	return client.Command{Path: l.program, Args: []string{path}}, cleanup, nil
}
