package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// MiB is a size in mebibytes. Its text is a bare number of mebibytes or a
// number with a unit: 512, 512MiB, 2GiB.
type MiB int64

// Bytes is a size in bytes. Its text is a bare number of bytes or a number
// with a unit: 65536, 64KiB, 10MiB, 1GiB.
type Bytes int64

var units = []struct {
	suffix string
	bytes  int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"T", 1 << 40},
	{"G", 1 << 30},
	{"M", 1 << 20},
	{"K", 1 << 10},
	{"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MiB) UnmarshalText(text []byte) error {
	n, err := parseSize(string(text), 1<<20)
	if err != nil {
		return err
	}
	if n%(1<<20) != 0 {
		return fmt.Errorf("%q is not a whole number of MiB", text)
	}
	*m = MiB(n >> 20)
	return nil
}

// String gives the largest unit that divides m.
func (m MiB) String() string { return Bytes(m << 20).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MiB) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := parseSize(string(text), 1)
	if err != nil {
		return err
	}
	*b = Bytes(n)
	return nil
}

// String gives the largest unit that divides b.
func (b Bytes) String() string {
	for _, u := range units[:4] {
		if b != 0 && int64(b)%u.bytes == 0 {
			return strconv.FormatInt(int64(b)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// parseSize reads a number with an optional unit; unit is what a bare number
// counts.
func parseSize(s string, unit int64) (int64, error) {
	digits := strings.TrimSpace(s)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size: write a number, with KiB, MiB or GiB where needed", s)
	}
	return n * unit, nil
}

// parseDuration is time.ParseDuration with d for days.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err == nil && n >= 0 && n < 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration: write for example 30s, 10m, 24h or 7d", s)
	}
	return d, nil
}

// formatDuration writes whole hours, minutes and seconds without zero parts.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
