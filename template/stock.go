package template

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
)

// InterpreterName is the stock template with the code interpreter in it; it is
// what E2B's code-interpreter SDKs ask for by default.
const InterpreterName = "code-interpreter-v1"

// Stock is a template that Caisson knows how to build from Debian packages.
type Stock struct {
	Name string
	// Packages are what it is built from.
	Packages []string
	// Start runs when a sandbox of the template begins, as any user, and Ready
	// succeeds once that serves; both are shell text, empty for none.
	Start, Ready string
	// Resources are the defaults of its sandboxes; zero fields are the server's.
	Resources provider.Resources

	// hooks are options of mmdebstrap that run shell text with the tree as $1.
	hooks []string
	// room is what the installed tree may need, in bytes.
	room int64
}

// StockTemplates returns the templates that EnsureStock builds.
func StockTemplates() []Stock {
	return []Stock{
		{Name: BaseName, Packages: BasePackages(), room: tempRoom},
		{
			Name:      InterpreterName,
			Packages:  append(BasePackages(), interpreterPackages()...),
			Start:     "sudo env CAISSON_INTERPRETER_WARM='numpy pandas matplotlib.pyplot' /.caisson/caisson-agent interpreter",
			Ready:     "curl -fsS --max-time 2 -o /dev/null http://localhost:49999/health",
			Resources: provider.Resources{CPUs: 2, MemoryMiB: 2048},
			hooks:     []string{manuals, fontCache},
			room:      5 << 30,
		},
	}
}

// StockTemplate returns the stock template of a name; errdefs.ErrNotFound.
func StockTemplate(name string) (Stock, error) {
	for _, s := range StockTemplates() {
		if s.Name == name {
			return s, nil
		}
	}
	return Stock{}, fmt.Errorf("there is no stock template %q: %w", name, errdefs.ErrNotFound)
}

// interpreterPackages are added to base's: the kernels of every language of the
// code interpreter and the libraries that its users' code imports.
func interpreterPackages() []string {
	return []string{
		// Python
		"python3-ipykernel", "python3-numpy", "python3-pandas", "python3-scipy", "python3-sklearn",
		"python3-matplotlib", "python3-seaborn", "python3-plotly", "python3-nbformat", "python3-pil",
		"python3-openpyxl", "python3-requests", "python3-bs4", "python3-lxml", "python3-sympy", "python3-tabulate",
		"python3-jinja2", "fonts-dejavu-core",
		// JavaScript and TypeScript: node is base's
		"esbuild",
		// R
		"r-base-core", "r-cran-irkernel", "r-cran-jsonlite",
		// Java, with jshell
		"openjdk-17-jdk-headless",
	}
}

// manuals is a directory that Java's packages put links in, also where manuals
// are left out.
const manuals = `--essential-hook=mkdir -p "$1/usr/share/man/man1"`

// fontCache makes what matplotlib would make at its first import in every new
// sandbox, in seconds.
const fontCache = `--customize-hook=chroot "$1" env HOME=/root python3 -c 'import matplotlib.font_manager'`

// EnsureStock is EnsureBase for any stock template.
func (c *Catalog) EnsureStock(ctx context.Context, name string, o BaseOptions) (Template, Build, error) {
	s, err := StockTemplate(name)
	if err != nil {
		return Template{}, Build{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(o.Packages) == 0 {
		o.Packages = slices.Clone(s.Packages)
	}
	o.hooks, o.room = s.hooks, s.room
	o = o.withDefaults()
	if !o.Force {
		t, b, err := c.Resolve(ctx, identity.DefaultTeam, name)
		if err == nil && c.current(b, o) {
			return t, b, nil
		}
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return Template{}, Build{}, err
		}
	}
	started := time.Now()
	built, err := BuildBase(ctx, c.images, o)
	if err != nil {
		return Template{}, Build{}, err
	}
	return c.record(ctx, identity.DefaultTeam, name, true, started, Build{
		Source: built.Manifest.Source, Rootfs: built.Rootfs, Resources: s.Resources,
		User: built.User, Workdir: built.Workdir, Env: built.Env, Start: s.Start, Ready: s.Ready,
	})
}
