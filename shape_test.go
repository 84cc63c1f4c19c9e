package caisson_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/caisson-dev/caisson/"

// The sizes of docs/ARCHITECTURE.md; tests and generated code are exempt.
const (
	maxFileLines     = 600
	maxFunctionLines = 100
	maxMethods       = 10
)

func TestTreeShape(t *testing.T) {
	t.Parallel()
	docs := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path == "." {
				return nil
			}
			if strings.HasPrefix(name, ".") || name == "gen" || name == "node_modules" || name == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		checkFile(t, path, docs)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, has := range docs {
		if !has {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func checkFile(t *testing.T, path string, docs map[string]bool) {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), "\n"); n > maxFileLines {
		t.Errorf("%s: %d lines, at most %d", path, n, maxFileLines)
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	if ast.IsGenerated(f) {
		return
	}
	dir := filepath.Dir(path)
	docs[dir] = docs[dir] || f.Doc != nil
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				t.Errorf("%s: init functions are not used here", path)
			}
			if n.Body != nil {
				lines := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line
				if lines > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, at most %d", path, n.Name.Name, lines, maxFunctionLines)
				}
			}
		case *ast.InterfaceType:
			if len(n.Methods.List) > maxMethods {
				t.Errorf("%s: an interface with %d methods, at most %d", path, len(n.Methods.List), maxMethods)
			}
		}
		return true
	})
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// forbidden says which of our packages a room may not import directly.
var forbidden = map[string][]string{
	"provider":   {"sandbox", "store", "api", "ingress", "server", "cli", "client", "config"},
	"egress":     {"sandbox", "store", "api", "provider", "server", "config"},
	"vnet":       {"provider", "sandbox", "store", "api", "server", "config"},
	"codeinterp": {"agent", "sandbox", "store", "api", "server", "egress", "provider", "template", "config", "cli", "client"},
	"agent":      {"codeinterp", "sandbox", "store", "api", "server", "egress/gateway", "config", "cli"},
	"erofs":      {"image", "template", "provider", "sandbox", "store"},
	"image":      {"template", "provider", "sandbox", "store"},
	"pool":       {"sandbox", "template", "store", "api", "server", "config"},
	"sandbox":    {"batch", "store", "api", "ingress", "server", "cli", "config", "egress/gateway", "provider/gvisor"},
	"batch":      {"store", "api", "ingress", "server", "cli", "client", "config", "provider"},
	"template":   {"store", "sandbox", "api", "server", "cli", "config"},
	"identity":   {"store", "sandbox", "api", "server", "config"},
	"store":      {"api", "ingress", "server", "cli", "config"},
	"api":        {"store", "server", "cli", "ingress", "provider/gvisor", "config"},
	"ingress":    {"store", "server", "cli", "api", "config"},
	"client":     {"sandbox", "store", "server", "provider", "api", "config"},
	"cli":        {"sandbox", "store", "server", "provider", "api", "egress/gateway"},
	"config":     {"server", "cli", "sandbox", "store", "api"},
	"meter":      {"sandbox", "store", "api", "ingress", "server", "cli", "config", "egress", "agent"},
	"telemetry":  {"server", "cli", "sandbox", "store", "api"},
	"agent-only": {},
}

func TestImportDirection(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "./...") {
		room, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, module), "/")
		if strings.HasPrefix(p.ImportPath, module+"test") {
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "gvisor.dev/gvisor/runsc") {
				t.Errorf("%s imports %s: only the nested module engine may", p.ImportPath, imp)
			}
			to := strings.TrimPrefix(imp, module)
			if to == imp {
				continue
			}
			for _, f := range forbidden[room] {
				if to == f || strings.HasPrefix(to, f+"/") {
					t.Errorf("%s imports %s: arrows point down (docs/ARCHITECTURE.md)", p.ImportPath, imp)
				}
			}
		}
	}
}

// The agent is copied into every sandbox: it must not grow a database, a
// network stack or a metrics library.
func TestAgentDependencies(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "./cmd/caisson-agent") {
		for _, dep := range p.Deps {
			for _, bad := range []string{"database/sql", "modernc.org/", "gvisor.dev/", "k8s.io/", "go.opentelemetry.io/", "github.com/prometheus/", "github.com/spf13/"} {
				if strings.HasPrefix(dep, bad) {
					t.Errorf("the agent depends on %s", dep)
				}
			}
		}
	}
}
