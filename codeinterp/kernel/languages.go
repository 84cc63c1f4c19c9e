package kernel

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed files
var files embed.FS

// startLimit bounds the start of a kernel; Java's compiles itself first.
const startLimit = 60 * time.Second

// ErrUnsupported says that there is no kernel for a language here.
var ErrUnsupported = errors.New("language is not supported")

// Maker starts kernels. It is safe for concurrent use.
type Maker struct {
	dir     string
	files   string
	memory  int64
	warm    string
	numbers chan int
}

// NewMaker returns a Maker that keeps its files in dir, which it makes. memory
// is what a kernel may use, in bytes; 0 for no limit. warm names the modules
// that a Python kernel of StartWarm imports before its first cell.
func NewMaker(dir string, memory int64, warm []string) (*Maker, error) {
	m := &Maker{dir: dir, files: filepath.Join(dir, "files"), memory: memory, warm: strings.Join(warm, " "), numbers: make(chan int, 1)}
	m.numbers <- 0
	// What an earlier run left is of no use: its kernels died with it.
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("kernel files: %w", err)
	}
	if err := os.MkdirAll(m.files, 0o700); err != nil {
		return nil, fmt.Errorf("kernel files: %w", err)
	}
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(m.files, filepath.Base(path)), b, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("kernel files: %w", err)
	}
	return m, nil
}

// language says how a kernel of a language is started.
type language struct {
	// needs are programs that must be there.
	needs []string
	// probe are patterns of files of which one must be there.
	probe []string
	start func(ctx context.Context, m *Maker, dir, cwd string) (Kernel, error)
}

// languages are those with a kernel, by name. TypeScript runs on JavaScript's.
func languages() map[string]language {
	return map[string]language{
		"python":     {needs: []string{"python3"}, probe: []string{"/usr/lib/python3/dist-packages/ipykernel", "/usr/local/lib/python3*/*-packages/ipykernel"}, start: startPython},
		"javascript": {needs: []string{"node"}, start: startNode},
		"r":          {needs: []string{"R"}, probe: []string{"/usr/lib/R/*library/IRkernel", "/usr/local/lib/R/*library/IRkernel"}, start: startR},
		"java":       {needs: []string{"java", "javac"}, start: startJava},
		"bash":       {needs: []string{"bash"}, start: startBash},
	}
}

// Normalize returns the name of a language as Caisson writes it.
func Normalize(name string) string {
	switch name = strings.ToLower(strings.TrimSpace(name)); name {
	case "":
		return "python"
	case "js":
		return "javascript"
	case "ts":
		return "typescript"
	}
	return name
}

// Runtime returns the language whose kernels run a language.
func Runtime(name string) string {
	if name == "typescript" {
		return "javascript"
	}
	return name
}

// Supported returns the languages that have what they need here, sorted.
func Supported() []string {
	var names []string
	for name, l := range languages() {
		if !l.here() {
			continue
		}
		names = append(names, name)
		if name == "javascript" {
			if _, err := exec.LookPath("esbuild"); err == nil {
				names = append(names, "typescript")
			}
		}
	}
	slices.Sort(names)
	return names
}

func (l language) here() bool {
	for _, n := range l.needs {
		if _, err := exec.LookPath(n); err != nil {
			return false
		}
	}
	if len(l.probe) == 0 {
		return true
	}
	for _, p := range l.probe {
		if found, _ := filepath.Glob(p); len(found) > 0 {
			return true
		}
	}
	return false
}

// Start starts a kernel for a language, as Normalize and Runtime return it, in
// the directory cwd. ErrUnsupported when there is none for it here.
func (m *Maker) Start(ctx context.Context, name, cwd string) (Kernel, error) {
	cold := *m
	cold.warm = ""
	return cold.StartWarm(ctx, name, cwd)
}

// StartWarm is Start, but a Python kernel has imported the modules that
// NewMaker was told of when it returns.
func (m *Maker) StartWarm(ctx context.Context, name, cwd string) (Kernel, error) {
	l, ok := languages()[name]
	if !ok || !l.here() {
		return nil, fmt.Errorf("%q: %w in this sandbox; it has %s", name, ErrUnsupported, strings.Join(Supported(), ", "))
	}
	if info, err := os.Stat(cwd); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("working directory %q does not exist", cwd)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it took more than %s", startLimit))
	defer cancel()
	n := <-m.numbers + 1
	m.numbers <- n
	return l.start(ctx, m, filepath.Join(m.dir, "kernel-"+strconv.Itoa(n)), cwd)
}

// command prepares a kernel's process. It is not tied to ctx, which ends with
// the start.
func command(cwd, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = cwd
	cmd.Env = append(os.Environ(), "PWD="+cwd)
	return cmd
}

func startPython(ctx context.Context, m *Maker, dir, cwd string) (Kernel, error) {
	cmd := command(cwd, "python3", filepath.Join(m.files, "python.py"), "{connection}")
	cmd.Env = append(cmd.Env, "CAISSON_KERNEL_MEMORY="+strconv.FormatInt(m.memory, 10), "CAISSON_KERNEL_WARM="+m.warm,
		// Every allocator arena is 64 MiB of addresses that count.
		"MALLOC_ARENA_MAX=2", "PYDEVD_DISABLE_FILE_VALIDATION=1")
	return StartJupyter(ctx, dir, cmd, nil)
}

func startR(ctx context.Context, _ *Maker, dir, cwd string) (Kernel, error) {
	cmd := command(cwd, "R", "--no-save", "--no-restore", "--no-echo", "-e", "IRkernel::main()", "--args", "{connection}")
	return StartJupyter(ctx, dir, cmd, &Snippets{
		Set: func(vars map[string]string) string {
			var args []string
			for _, name := range slices.Sorted(maps.Keys(vars)) {
				args = append(args, "`"+strings.ReplaceAll(name, "`", "")+"` = "+literal(vars[name]))
			}
			return "Sys.setenv(" + strings.Join(args, ", ") + ")"
		},
		Unset: func(names []string) string {
			var args []string
			for _, name := range slices.Sorted(slices.Values(names)) {
				args = append(args, literal(name))
			}
			return "Sys.unsetenv(c(" + strings.Join(args, ", ") + "))"
		},
	})
}

// literal makes s a string of R, whose escapes include JSON's.
func literal(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return string(b)
}

func startNode(ctx context.Context, m *Maker, _, cwd string) (Kernel, error) {
	args := []string{"--expose-internals", "--no-warnings"}
	if m.memory > 0 {
		args = append(args, "--max-old-space-size="+strconv.FormatInt(m.memory>>20*3/4, 10))
	}
	return StartRunner(ctx, command(cwd, "node", append(args, filepath.Join(m.files, "javascript.cjs"))...))
}

func startJava(ctx context.Context, m *Maker, _, cwd string) (Kernel, error) {
	args := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"}
	if m.memory > 0 {
		args = append(args, "-Xmx"+strconv.FormatInt(m.memory>>20/2, 10)+"m")
	}
	return StartRunner(ctx, command(cwd, "java", append(args, filepath.Join(m.files, "Kernel.java"))...))
}

func startBash(ctx context.Context, _ *Maker, dir, cwd string) (Kernel, error) {
	return StartBash(ctx, dir, command(cwd, "bash"))
}
