package kernel_test

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// start starts a kernel of this machine's, for tests of what needs no Python:
// Jupyter kernels are tested in sandboxes.
func start(t *testing.T, language string) kernel.Kernel {
	t.Helper()
	if !slices.Contains(kernel.Supported(), language) {
		t.Skipf("no kernel for %s on this machine", language)
	}
	m, err := kernel.NewMaker(filepath.Join(t.TempDir(), "kernels"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := m.Start(t.Context(), language, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// outcome is what came of a cell.
type outcome struct {
	Out, Err, Text, Error string
	Counts                []int
}

func run(t *testing.T, k kernel.Kernel, c kernel.Cell) (outcome, error) {
	t.Helper()
	var o outcome
	err := k.Execute(t.Context(), c, func(e kernel.Event) {
		switch e.Kind {
		case kernel.Count:
			o.Counts = append(o.Counts, e.Count)
		case kernel.Stdout:
			o.Out += e.Text
		case kernel.Stderr:
			o.Err += e.Text
		case kernel.Result:
			var text string
			_ = json.Unmarshal(e.Data["text/plain"], &text)
			o.Text += text
		case kernel.Error:
			o.Error = e.Name
		}
	})
	return o, err
}

type cell struct {
	code, language string
	env            map[string]string
	want           outcome
}

func check(t *testing.T, k kernel.Kernel, cells []cell) {
	t.Helper()
	for i, c := range cells {
		got, err := run(t, k, kernel.Cell{Code: c.code, Language: c.language, Env: c.env})
		if err != nil {
			t.Fatalf("Execute(%q) = %v", c.code, err)
		}
		c.want.Counts = []int{i + 1}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("Execute(%q): %s", c.code, diff)
		}
	}
}

func TestBash(t *testing.T) {
	t.Parallel()
	once := map[string]string{"ONCE": "it's $HOME"}
	check(t, start(t, "bash"), []cell{
		{code: "echo one; echo two >&2", want: outcome{Out: "one\n", Err: "two\n"}},
		{code: "v=3; f() { echo f$v; }; cd /", want: outcome{}},
		{code: "f; pwd", want: outcome{Out: "f3\n/\n"}},
		{code: "(exit 7)", want: outcome{Error: "ExitCode"}},
		{code: `echo "$ONCE"`, env: once, want: outcome{Out: "it's $HOME\n"}},
		{code: `echo "[$ONCE]"`, want: outcome{Out: "[]\n"}},
		{code: "cat", want: outcome{}},
	})
}

func TestBashLosesNothing(t *testing.T) {
	t.Parallel()
	k := start(t, "bash")
	got, err := run(t, k, kernel.Cell{Code: "head -c 5000000 /dev/zero | tr '\\0' x; printf é"})
	if err != nil || len(got.Out) != 5000002 || !strings.HasSuffix(got.Out, "xé") {
		t.Errorf("Execute = %d bytes, %v", len(got.Out), err)
	}
	// Output that is sent elsewhere for good does not hide the end of cells.
	if _, err := run(t, k, kernel.Cell{Code: "exec >/dev/null"}); err != nil {
		t.Fatal(err)
	}
	if got, err := run(t, k, kernel.Cell{Code: "echo lost; echo seen >&2"}); err != nil || got.Out != "" || got.Err != "seen\n" {
		t.Errorf("Execute = %+v, %v", got, err)
	}
}

func TestJavaScript(t *testing.T) {
	t.Parallel()
	check(t, start(t, "javascript"), []cell{
		{code: "const x = 1; console.log('a'); console.error('b'); x", want: outcome{Out: "a\n", Err: "b\n", Text: "1"}},
		{code: "const x = await Promise.resolve(2); x + 1", want: outcome{Text: "3"}},
		{code: "import { basename as b } from 'node:path'; b('/q/r')", want: outcome{Text: "r"}},
		{code: "(await import('node:os')).EOL.length", want: outcome{Text: "1"}},
		{code: "export function g() { return 4 }\nlet undefinedValue;", want: outcome{}},
		{code: "g(); undefined", want: outcome{}},
		{code: "({ a: [1] })", want: outcome{Text: "{ a: [ 1 ] }"}},
		{code: "throw new RangeError('r')", want: outcome{Error: "RangeError"}},
		{code: "let = 1 +", want: outcome{Error: "SyntaxError"}},
		{code: "process.env.ONCE", env: map[string]string{"ONCE": "1"}, want: outcome{Text: "1"}},
		{code: "process.env.ONCE", want: outcome{}},
		{code: "require('node:child_process').execSync('echo child', {stdio: 'inherit'}); 1", want: outcome{Out: "child\n", Text: "1"}},
		{code: "display('<b>x</b>', 'text/html')", want: outcome{}},
		{code: "// nothing", want: outcome{}},
	})
}

func TestTypeScript(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("esbuild"); err != nil {
		t.Skip("no esbuild on this machine")
	}
	check(t, start(t, "javascript"), []cell{
		{code: "enum E { A = 3 }\nconst e: E = E.A; e", language: "typescript", want: outcome{Text: "3"}},
	})
}

func TestJava(t *testing.T) {
	t.Parallel()
	check(t, start(t, "java"), []cell{
		{code: "int x = 20; System.out.println(\"a\");\nx + 1", want: outcome{Out: "a\n", Text: "21"}},
		{code: "int y = ;", want: outcome{Error: "CompilationException"}},
		{code: "throw new IllegalStateException(\"s\");", want: outcome{Error: "java.lang.IllegalStateException"}},
		{code: "System.getProperty(\"ONCE\") + x", env: map[string]string{"ONCE": "é\n\""}, want: outcome{Text: "\"é\\n\\\"20\""}},
	})
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	for language, cells := range map[string][3]string{
		"bash":       {"echo begun; while :; do sleep 0.001; done", "echo after", "after\n"},
		"javascript": {"console.log('begun'); while (true) {}", "console.log('after')", "after\n"},
		"java":       {"System.out.println(\"begun\"); while (true) {}", "System.out.println(\"after\");", "after\n"},
	} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			k := start(t, language)
			begun := make(chan struct{})
			over := make(chan error, 1)
			go func() {
				over <- k.Execute(context.WithoutCancel(t.Context()), kernel.Cell{Code: cells[0]}, func(e kernel.Event) {
					if e.Kind == kernel.Stdout {
						close(begun)
					}
				})
			}()
			<-begun
			k.Interrupt()
			if err := <-over; err != nil {
				t.Fatalf("Execute = %v", err)
			}
			if got, err := run(t, k, kernel.Cell{Code: cells[1]}); err != nil || got.Out != cells[2] {
				t.Errorf("Execute after an interrupt = %+v, %v", got, err)
			}
		})
	}
}

func TestDeath(t *testing.T) {
	t.Parallel()
	for language, code := range map[string]string{"bash": "echo last; exit 3", "javascript": "console.log('last'); process.exit(3)", "java": "Runtime.getRuntime().halt(3);"} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			k := start(t, language)
			got, err := run(t, k, kernel.Cell{Code: code})
			if !errors.Is(err, kernel.ErrDied) {
				t.Errorf("Execute = %v, want ErrDied", err)
			}
			if language != "java" && got.Out != "last\n" {
				t.Errorf("output = %q, want what was printed before the end", got.Out)
			}
			select {
			case <-k.Done():
			default:
				t.Error("Done is open after ErrDied")
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	m, err := kernel.NewMaker(filepath.Join(t.TempDir(), "kernels"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), "cobol", "/"); !errors.Is(err, kernel.ErrUnsupported) {
		t.Errorf("Start(cobol) = %v, want ErrUnsupported", err)
	}
	if _, err := m.Start(t.Context(), "bash", "/nothing-here"); err == nil {
		t.Error("Start in a directory that is not there = nil, want an error")
	}
}
