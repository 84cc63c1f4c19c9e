package egress

import (
	"maps"
	"slices"
)

// presets are the public hosts that common package managers and services need.
// Hosts that anyone can publish any content under are listed one by one and
// never by a wildcard over a shared storage service.
var presets = map[string][]string{
	"alpine": {"dl-cdn.alpinelinux.org"},
	"arch":   {"geo.mirror.pkgbuild.com", "fastly.mirror.pkgbuild.com", "*.mirror.pkgbuild.com"},
	"conda":  {"conda.anaconda.org", "repo.anaconda.com", "api.anaconda.org"},
	"crates": {"crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org"},
	"debian": {"deb.debian.org", "*.deb.debian.org", "security.debian.org", "ftp.debian.org", "snapshot.debian.org"},
	// Fedora's lists of mirrors name hosts all over the world; the project's own are
	// the ones that dnf meets here.
	"fedora": {"mirrors.fedoraproject.org", "dl.fedoraproject.org", "download.fedoraproject.org", "codecs.fedoraproject.org"},
	"github": {
		"github.com", "api.github.com", "codeload.github.com", "uploads.github.com", "raw.githubusercontent.com",
		"gist.githubusercontent.com", "objects.githubusercontent.com", "media.githubusercontent.com",
		"release-assets.githubusercontent.com", "github-releases.githubusercontent.com",
		"ghcr.io", "pkg-containers.githubusercontent.com", "npm.pkg.github.com",
	},
	"go":          {"proxy.golang.org", "sum.golang.org", "go.dev", "golang.org"},
	"huggingface": {"huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co"},
	"npm":         {"registry.npmjs.org", "registry.yarnpkg.com"},
	"pypi":        {"pypi.org", "files.pythonhosted.org"},
	// What is built of the sources of Red Hat's distribution.
	"rhel": {
		"cdn-ubi.redhat.com", "mirrors.centos.org", "mirror.stream.centos.org", "mirrors.rockylinux.org", "dl.rockylinux.org",
		"mirrors.almalinux.org", "repo.almalinux.org", "mirrors.fedoraproject.org", "dl.fedoraproject.org",
	},
	"rubygems": {"rubygems.org", "index.rubygems.org"},
	"ubuntu":   {"archive.ubuntu.com", "*.archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"},
}

// PresetNames returns the names of all presets in order.
func PresetNames() []string { return slices.Sorted(maps.Keys(presets)) }

// Preset returns the hosts of a preset, and whether there is one of that name.
func Preset(name string) ([]string, bool) {
	hosts, ok := presets[name]
	return slices.Clone(hosts), ok
}
