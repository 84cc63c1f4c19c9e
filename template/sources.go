package template

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Debian's public archive and the keys that sign it.
const (
	publicMirror   = "http://deb.debian.org/debian"
	publicSecurity = "http://deb.debian.org/debian-security"
	debianKeyring  = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// aptHost is what a build takes from the host's package manager.
type aptHost struct {
	// etc is /etc, or a test's.
	etc string
	// config is the output of apt-config dump.
	config string
}

// hostApt reads the host's apt settings; a host without apt has none.
func hostApt(ctx context.Context) aptHost {
	h := aptHost{etc: "/etc"}
	if out, err := exec.CommandContext(ctx, "apt-config", "dump").Output(); err == nil {
		h.config = string(out)
	}
	return h
}

// sources returns apt's sources for the build. A given mirror wins; then, on a
// Debian host of the same suite, the host's own sources, which work where the
// host itself is kept up to date; then the public archive.
func (h aptHost) sources(suite, mirror string) string {
	if mirror != "" {
		return mirrorSources(suite, mirror)
	}
	if own := h.own(suite); len(own) > 0 {
		return strings.Join(own, "\n") + "\n"
	}
	return publicSources(suite)
}

// mirrorSources takes a mirror laid out as Debian's: security fixes beside the
// archive, in <mirror>-security.
func mirrorSources(suite, mirror string) string {
	mirror = strings.TrimRight(mirror, "/")
	s := strings.ReplaceAll(publicSources(suite), publicSecurity, mirror+"-security")
	return strings.ReplaceAll(s, publicMirror+" ", mirror+" ")
}

// own returns the host's entries for suite as one-line sources.
func (h aptHost) own(suite string) []string {
	release, err := os.ReadFile(filepath.Join(h.etc, "os-release"))
	if err != nil {
		return nil
	}
	var id, codename string
	for line := range strings.Lines(string(release)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ID":
			id = strings.Trim(value, `"`)
		case "VERSION_CODENAME":
			codename = strings.Trim(value, `"`)
		}
	}
	if id != "debian" || codename != suite {
		return nil
	}
	files, _ := filepath.Glob(filepath.Join(h.etc, "apt/sources.list.d/*"))
	slices.Sort(files)
	var lines []string
	for _, file := range append([]string{filepath.Join(h.etc, "apt/sources.list")}, files...) {
		body, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		switch filepath.Ext(file) {
		case ".list":
			lines = append(lines, oneLine(string(body), suite)...)
		case ".sources":
			lines = append(lines, deb822(string(body), suite)...)
		}
	}
	// The suite itself is needed; updates alone are no system.
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, " "+suite+" main") }) {
		return nil
	}
	return slices.Compact(lines)
}

// source is one entry for one suite.
type source struct {
	uri, suite, signedBy string
	components           []string
	options              []string
}

// line renders the entry when it is Debian's own archive for the wanted suite.
// Third parties use Debian's suite names too; they are told by their key or,
// without one, by their address.
func (s source) line(want string) (string, bool) {
	if !slices.Contains([]string{want, want + "-updates", want + "-security"}, s.suite) || !slices.Contains(s.components, "main") {
		return "", false
	}
	keyring := s.signedBy
	switch {
	case keyring == "":
		if !strings.Contains(strings.ToLower(s.uri), "debian") {
			return "", false
		}
		keyring = debianKeyring
	case !strings.Contains(filepath.Base(keyring), "debian-archive"):
		return "", false
	}
	options := append([]string{"signed-by=" + keyring}, s.options...)
	return fmt.Sprintf("deb [%s] %s %s main", strings.Join(options, " "), s.uri, s.suite), true
}

// oneLine reads a file of the classic format.
func oneLine(body, want string) []string {
	var out []string
	for raw := range strings.Lines(body) {
		text, _, _ := strings.Cut(raw, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(text), "deb ")
		if !ok {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if after, ok := strings.CutPrefix(rest, "["); ok {
			opts, tail, ok := strings.Cut(after, "]")
			if !ok {
				continue
			}
			rest = tail
			for _, o := range strings.Fields(opts) {
				s.option(o)
			}
		}
		fields := strings.Fields(rest)
		if len(fields) < 3 {
			continue
		}
		s.uri, s.suite, s.components = fields[0], fields[1], fields[2:]
		if line, ok := s.line(want); ok {
			out = append(out, line)
		}
	}
	return out
}

// option keeps what a build must know of an entry's options.
func (s *source) option(o string) {
	key, value, _ := strings.Cut(o, "=")
	switch strings.ToLower(key) {
	case "signed-by":
		s.signedBy = value
	case "check-valid-until", "check-date":
		s.options = append(s.options, strings.ToLower(key)+"="+value)
	}
}

// deb822 reads a file of stanzas.
func deb822(body, want string) []string {
	var out []string
	for stanza := range strings.SplitSeq(strings.ReplaceAll(body, "\r", ""), "\n\n") {
		fields := stanzaFields(stanza)
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		// A key in the stanza itself spans lines; it has no file to name.
		if strings.Contains(fields["signed-by"], "BEGIN PGP") {
			continue
		}
		for _, uri := range strings.Fields(fields["uris"]) {
			for _, suite := range strings.Fields(fields["suites"]) {
				s := source{
					uri: uri, suite: suite, signedBy: strings.TrimSpace(fields["signed-by"]),
					components: strings.Fields(fields["components"]),
				}
				for _, key := range []string{"check-valid-until", "check-date"} {
					if v := fields[key]; v != "" {
						s.options = append(s.options, key+"="+strings.TrimSpace(v))
					}
				}
				if line, ok := s.line(want); ok {
					out = append(out, line)
				}
			}
		}
	}
	return out
}

func stanzaFields(stanza string) map[string]string {
	fields := map[string]string{}
	key := ""
	sc := bufio.NewScanner(strings.NewReader(stanza))
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " "), strings.HasPrefix(line, "\t"):
			fields[key] += " " + strings.TrimSpace(line)
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			key = strings.ToLower(strings.TrimSpace(name))
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

// options returns the host's settings for reaching mirrors: proxies,
// certificates, retries, dates, and where passwords are.
func (h aptHost) options() []string {
	var out []string
	for line := range strings.Lines(h.config) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, " ")
		if !ok || value == `"";` {
			continue
		}
		if wantedOption(strings.ToLower(key)) {
			out = append(out, line)
		}
	}
	for option, path := range map[string]string{
		"Dir::Etc::netrc": "apt/auth.conf", "Dir::Etc::netrcparts": "apt/auth.conf.d",
	} {
		full := filepath.Join(h.etc, path)
		if _, err := os.Stat(full); err == nil {
			out = append(out, fmt.Sprintf("%s %q;", option, full))
		}
	}
	slices.Sort(out)
	return out
}

func wantedOption(key string) bool {
	rest, ok := strings.CutPrefix(key, "acquire::")
	if !ok {
		return false
	}
	switch rest {
	case "check-valid-until", "check-date", "retries", "forceipv4", "forceipv6":
		return true
	}
	protocol, name, ok := strings.Cut(rest, "::")
	if !ok || protocol != "http" && protocol != "https" {
		return false
	}
	name, _, _ = strings.Cut(name, "::")
	switch name {
	case "proxy", "proxy-auto-detect", "timeout", "cainfo", "capath", "sslcert", "sslkey", "verify-peer", "verify-host":
		return true
	}
	return false
}

// redact hides user information in the addresses of a line.
func redact(line string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(line, "://")
		if !ok {
			b.WriteString(line)
			return b.String()
		}
		b.WriteString(before + "://")
		end := strings.IndexAny(rest, "/ \t\"'<>")
		if end < 0 {
			end = len(rest)
		}
		host := rest[:end]
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			b.WriteString("redacted@")
			host = host[at+1:]
		}
		b.WriteString(host)
		line = rest[end:]
	}
}
