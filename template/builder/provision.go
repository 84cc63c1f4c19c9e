package builder

import (
	"errors"
	"slices"
	"strings"

	"github.com/caisson-dev/caisson/template"
)

// The families of distributions whose package manager is known.
const (
	FamilyDebian = "debian"
	FamilyFedora = "fedora"
	FamilyAlpine = "alpine"
	FamilyArch   = "arch"
)

// Tools are the programs that clients count on in every template: the published
// SDKs run commands by bash, and their ready helpers ask ss, curl and pgrep.
func Tools() []string { return []string{"bash", "sudo", "curl", "ss", "pgrep", "git"} }

// packages says which package of a family has a tool, where it is not named like
// it.
func packages(family string, tools []string) []string {
	names := map[string]string{"ss": "iproute2", "pgrep": "procps"}
	switch family {
	case FamilyFedora:
		names = map[string]string{"ss": "iproute", "pgrep": "procps-ng"}
	case FamilyArch:
		names["pgrep"] = "procps-ng"
	}
	var out []string
	for _, t := range tools {
		if p, ok := names[t]; ok {
			t = p
		}
		out = append(out, t)
	}
	out = append(out, "ca-certificates")
	slices.Sort(out)
	return slices.Compact(out)
}

// provision is the line that installs tools, "" where nobody knows how.
func provision(family string, tools []string) string {
	list := strings.Join(packages(family, tools), " ")
	switch family {
	case FamilyDebian:
		return "export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -q -y --no-install-recommends " +
			list + " && rm -rf /var/lib/apt/lists/*"
	case FamilyFedora:
		return "for m in dnf microdnf yum; do command -v $m >/dev/null && exec $m -y install " + list + "; done; exit 1"
	case FamilyAlpine:
		return "apk add --no-cache " + list
	case FamilyArch:
		return "pacman -Sy --noconfirm --needed " + list
	}
	return ""
}

// pacmanSandbox turns off the confinement that pacman from version 7 on puts its
// downloads in, for these tools and for later steps: it is made of Landlock, which
// gVisor has not, and without which pacman ends. Older ones warn of the line. An
// image that lacks no tool needs it as well.
const pacmanSandbox = `f=/etc/pacman.conf; if [ -f $f ] && ! grep -q '^DisableSandbox' $f; then sed -i 's/^\[options\]$/&\nDisableSandbox/' $f; fi; `

// prelude are the steps before the plan's own that an image needs.
func prelude(b Base) []template.Step {
	line := ""
	if len(b.Missing) > 0 {
		line = provision(b.Family, b.Missing)
	}
	if b.Family == FamilyArch {
		line = pacmanSandbox + line
	}
	if line == "" {
		return nil
	}
	return []template.Step{
		{Type: "RUN", Args: []string{line, "root"}},
		{Type: "USER", Args: []string{b.User, "true"}},
	}
}

// errProvision says that an image's missing tools cannot be installed.
var errProvision = errors.New("cannot be installed")

// lacks tells the author of a build what its sandboxes will not have.
func (r *run) lacks(b Base, err error) {
	why := ""
	if err != nil {
		why = " and cannot be installed: " + err.Error()
	}
	r.log.warn(0, "[base] the image lacks %s%s", strings.Join(b.Missing, ", "), why)
	if slices.Contains(b.Missing, "bash") {
		r.log.warn(0, "[base] without bash the SDKs' commands do not run in sandboxes of this template")
	}
}
