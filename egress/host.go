package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // of a DNS name in text form, without the trailing dot
	maxLabel = 63
)

var (
	errEmptyName = errors.New("name is empty")
	errLongName  = errors.New("name is longer than 253 bytes")
)

// Canonical turns a host name, in whatever spelling a guest, a protocol or a
// user gave it, into the one spelling that is used for deciding, comparing,
// resolving and logging: lower-case ASCII without a trailing dot, punycode for
// anything else. It refuses what any parser could read differently: NUL,
// spaces, control characters, user info, ports, empty labels, and everything
// that some resolvers read as an IPv4 address (octal, hexadecimal and single
// number forms). Canonical(Canonical(x)) equals Canonical(x).
func Canonical(name string) (string, error) {
	if name == "" {
		return "", errEmptyName
	}
	if len(name) > 4*maxName { // bounds the work below
		return "", errLongName
	}
	ascii := true
	for i := range len(name) {
		c := name[i]
		if c >= 0x80 {
			ascii = false
			continue
		}
		if !nameByte(c) && c != '.' {
			return "", fmt.Errorf("name has the character %q", rune(c))
		}
	}
	if !ascii {
		mapped, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", fmt.Errorf("name is not a valid international name: %w", err)
		}
		name = mapped
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if err := checkName(name); err != nil {
		return "", err
	}
	return name, nil
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// checkName validates a lower-case name without trailing dot.
func checkName(name string) error {
	if name == "" {
		return errEmptyName
	}
	if len(name) > maxName {
		return errLongName
	}
	var label string
	for rest, more := name, true; more; {
		label, rest, more = strings.Cut(rest, ".")
		if label == "" {
			return errors.New("name has an empty label")
		}
		if len(label) > maxLabel {
			return errors.New("name has a label longer than 63 bytes")
		}
		for i := range len(label) {
			if !nameByte(label[i]) {
				return fmt.Errorf("name has the character %q", rune(label[i]))
			}
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("name has a label that starts or ends with a hyphen")
		}
		if strings.HasPrefix(label, "xn--") {
			// Punycode must be the only spelling of what it stands for.
			u, err := idna.Lookup.ToUnicode(label)
			if err != nil {
				return fmt.Errorf("name has an invalid international label: %w", err)
			}
			if back, err := idna.Lookup.ToASCII(u); err != nil || back != label {
				return errors.New("name has an ambiguous international label")
			}
		}
	}
	if numeric(label) {
		return errors.New("name ends in a number, which some programs read as an address")
	}
	return nil
}

// numeric reports whether a resolver could read the last label as the end of
// an IPv4 address: decimal, octal (leading 0) or hexadecimal (leading 0x).
func numeric(label string) bool {
	digits, base := label, "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		digits, base = hex, "0123456789abcdef"
	}
	return strings.Trim(digits, base) == ""
}

// ParseHost reads a name or an IP literal. Exactly one of the results is set:
// a canonical name or an address without zone, IPv4-mapped ones unmapped.
func ParseHost(host string) (string, netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "", netip.Addr{}, fmt.Errorf("address %q has a zone", host)
		}
		return "", a.Unmap(), nil
	}
	name, err := Canonical(host)
	return name, netip.Addr{}, err
}
