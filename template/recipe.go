package template

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Name and source of the stock template.
const (
	BaseName      = "base"
	DefaultSuite  = "bookworm"
	sourceTar     = "tar"
	recipeVersion = 3
)

// BasePackages returns the Debian packages of the base template beside those
// that every Debian system has. They are what the E2B contract names (bash,
// coreutils, curl, git, python, node, npm, sudo, tput, ss, pgrep) and what
// agents reach for every day; no compilers, which would double the size.
// npm is not among them: see npm.go.
func BasePackages() []string {
	return []string{
		"bash", "bash-static", "bzip2", "ca-certificates", "coreutils", "curl", "diffutils", "file", "findutils",
		"gawk", "git", "grep", "gzip", "iproute2", "jq", "less", "libnss-myhostname", "lsof", "nano",
		"ncurses-base", "ncurses-bin", "netcat-openbsd", "nodejs", "openssh-client", "patch", "procps",
		"psmisc", "python-is-python3", "python3", "python3-pip", "python3-venv", "sed", "sudo", "tar",
		"tzdata", "unzip", "vim-tiny", "wget", "xz-utils", "zip",
	}
}

// recipe is all that decides what a base build asks for. What the mirror serves
// on the day is recorded in the Manifest, but is not part of the recipe: a
// template does not change by itself; a forced build brings newer packages.
type recipe struct {
	Version  int      `json:"version"`
	Suite    string   `json:"suite"`
	Arch     string   `json:"arch"`
	Packages []string `json:"packages"`
	NPM      string   `json:"npm"`
	// Files is the digest of every file that finalisation writes.
	Files string `json:"files"`
	// Hooks are what else is done to the tree.
	Hooks []string `json:"hooks,omitempty"`
	// Bare says that nothing is added to the packages.
	Bare bool `json:"bare,omitempty"`
}

func newRecipe(o BaseOptions) recipe {
	sorted := slices.Clone(o.Packages)
	slices.Sort(sorted)
	return recipe{
		Version: recipeVersion, Suite: o.Suite, Arch: runtime.GOARCH,
		Packages: slices.Compact(sorted), NPM: o.npm(), Files: filesDigest(o.Suite), Hooks: o.hooks, Bare: o.bare,
	}
}

// key is the content address of a recipe.
func (r recipe) key() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Manifest is the lock file of a build, kept beside its image.
type Manifest struct {
	// Recipe is the key of what was asked for; empty for a build from a tar.
	Recipe    string    `json:"recipe,omitempty"`
	Source    string    `json:"source"`
	CreatedAt time.Time `json:"createdAt"`
	// NPM is the version of npm that was added, if it is not Debian's.
	NPM string `json:"npm,omitempty"`
	// Packages are the Debian packages in the image with exact versions, sorted.
	Packages []Package `json:"packages,omitempty"`
	Files    int       `json:"files"`
	// DataBytes is the sum of the lengths of all files.
	DataBytes int64    `json:"dataBytes"`
	Warnings  []string `json:"warnings,omitempty"`
}

// Package is one installed Debian package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

// InstalledPackages are those of a dpkg status file. They are what could be read:
// a damaged file is the image's own affair.
func InstalledPackages(status []byte) []Package {
	packages, _ := parsePackages(status)
	return packages
}

// parsePackages reads a dpkg status file and returns the installed packages.
func parsePackages(status []byte) ([]Package, error) {
	var all []Package
	var p Package
	installed := false
	flush := func() {
		if installed && p.Name != "" {
			all = append(all, p)
		}
		p, installed = Package{}, false
	}
	sc := bufio.NewScanner(bytes.NewReader(status))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		key, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "":
			flush()
		case key == "Package":
			p.Name = value
		case key == "Version":
			p.Version = value
		case key == "Architecture":
			p.Arch = value
		case key == "Status":
			installed = strings.HasSuffix(value, " installed")
		}
	}
	flush()
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read dpkg status: %w", err)
	}
	slices.SortFunc(all, func(a, b Package) int { return strings.Compare(a.Name+" "+a.Arch, b.Name+" "+b.Arch) })
	return all, nil
}
