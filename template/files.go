package template

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
)

// defaultPath is the search path of every process in a sandbox.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The user that sandboxes run as when nobody chose another.
const (
	userName = "user"
	userHome = "/home/user"
	userID   = 1000
)

// textFile is a file that finalisation writes.
type textFile struct {
	path string
	mode fs.FileMode
	text string
}

// sandboxFiles returns what every root filesystem gets: the network of a
// sandbox, whose resolver is its gateway, and no identity of its own.
func sandboxFiles() []textFile {
	return []textFile{
		{"etc/resolv.conf", 0o644, "nameserver 10.0.0.1\n"},
		{"etc/hostname", 0o644, "sandbox\n"},
		{"etc/hosts", 0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{"etc/machine-id", 0o444, ""},
	}
}

// debianFiles returns what the base template gets besides.
func debianFiles(suite string) []textFile {
	return []textFile{
		{"etc/profile", 0o644, profileText},
		{"etc/pip.conf", 0o644, "[global]\ndisable-pip-version-check = true\nroot-user-action = ignore\n"},
		{"etc/gitconfig", 0o644, "[safe]\n\tdirectory = *\n"},
		{"etc/apt/sources.list", 0o644, publicSources(suite)},
		{"etc/apt/apt.conf.d/80caisson", 0o644, "Acquire::Languages \"none\";\nDPkg::Use-Pty \"0\";\n"},
		{"etc/dpkg/dpkg.cfg.d/caisson", 0o644, dpkgText},
		{"usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\n# No service manager runs in a sandbox.\nexit 101\n"},
	}
}

// bareFiles returns what a tree without a whole Debian system gets besides.
func bareFiles() []textFile {
	return []textFile{
		{"etc/profile", 0o644, profileText},
		{"etc/dpkg/dpkg.cfg.d/caisson", 0o644, dpkgText},
	}
}

// sudoersText lets the user become root without a password. The pseudo-terminal
// that sudo would add costs two processes a call and protects nothing here.
const sudoersText = userName + " ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:" + userName + " !use_pty, !requiretty, !lecture\n"

// profileText replaces Debian's /etc/profile, which forks for id(1): login
// shells run it before every command.
const profileText = `# System-wide profile of login shells. It starts no process: login shells are
# made for every command. A search path that the caller gave is kept.
: "${PATH:=` + defaultPath + `}"
export PATH

if [ -n "${PS1-}" ]; then
  if [ -n "${BASH-}" ] && [ "$BASH" != "/bin/sh" ]; then
    [ -f /etc/bash.bashrc ] && . /etc/bash.bashrc
  else
    PS1='$ '
  fi
fi

for i in /etc/profile.d/*.sh; do
  [ -r "$i" ] && . "$i"
done
unset i
`

// dpkgText keeps later installs small and quick: a sandbox needs no manuals and
// no sync after every file. pip and uv may install beside Debian's packages, so
// Python's marker against that stays out. So do gawk's shell functions, which
// every login shell would read.
const dpkgText = `force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED
path-exclude=/etc/profile.d/gawk.*
`

// publicSources returns apt's sources for inside the sandbox: Debian's public
// names, never what the build host used.
func publicSources(suite string) string {
	const keyring = "[signed-by=" + debianKeyring + "] "
	s := fmt.Sprintf("deb %s%s %s main\n", keyring, publicMirror, suite)
	if hasUpdates(suite) {
		s += fmt.Sprintf("deb %s%s %s-updates main\n", keyring, publicMirror, suite)
		s += fmt.Sprintf("deb %s%s %s-security main\n", keyring, publicSecurity, suite)
	}
	return s
}

// hasUpdates says whether a suite is a release, with updates and security fixes
// in suites of their own.
func hasUpdates(suite string) bool {
	return suite != "sid" && suite != "unstable" && suite != "testing" && suite != "experimental"
}

// filesDigest changes when any written text does.
func filesDigest(suite string) string {
	h := sha256.New()
	for _, f := range append(sandboxFiles(), debianFiles(suite)...) {
		fmt.Fprintf(h, "%s %o %d\n%s\n", f.path, f.mode, len(f.text), f.text)
	}
	fmt.Fprint(h, sudoersText, npmrcText)
	return hex.EncodeToString(h.Sum(nil))
}
