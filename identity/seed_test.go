package identity_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caisson-dev/caisson/identity"
	"github.com/containerd/errdefs"
)

func load(t *testing.T, dir string) identity.Seed {
	t.Helper()
	s, err := identity.LoadSeed(dir)
	if err != nil {
		t.Fatalf("LoadSeed() = %v", err)
	}
	return s
}

func TestSeedIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := load(t, dir), load(t, dir)
	if a.AgentToken("i1").Reveal() != b.AgentToken("i1").Reveal() {
		t.Error("two loads give two tokens")
	}
	st, err := os.Stat(filepath.Join(dir, "seed"))
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != 65 {
		t.Errorf("seed file = %v, %d bytes, %v", st.Mode(), st.Size(), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestSeedsOfRacingProcessesAgree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokens := make([]string, 8)
	var wg sync.WaitGroup
	for i := range tokens {
		wg.Go(func() {
			s, err := identity.LoadSeed(dir)
			if err != nil {
				t.Errorf("LoadSeed() = %v", err)
				return
			}
			tokens[i] = s.AgentToken("i1").Reveal()
		})
	}
	wg.Wait()
	for _, tok := range tokens {
		if tok != tokens[0] {
			t.Errorf("tokens differ: %v", tokens)
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, other := load(t, dir), load(t, t.TempDir())
	seen := map[string]bool{}
	for _, tok := range []string{
		one.AgentToken("i1").Reveal(), one.AgentToken("i2").Reveal(), one.TrafficToken("i1").Reveal(), other.AgentToken("i1").Reveal(),
	} {
		if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(tok) || seen[tok] {
			t.Errorf("token %q is malformed or repeated", tok)
		}
		seen[tok] = true
	}
	raw, err := os.ReadFile(filepath.Join(dir, "seed"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	nested := struct{ s identity.Seed }{one}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", one, one, one, one), fmt.Sprintf("%v %+v %#v", nested, nested, nested)} {
		if strings.Contains(s, string(key)) || strings.Contains(s, fmt.Sprint(key)) || strings.Contains(s, strings.Trim(strconv.Quote(string(key)), `"`)) {
			t.Errorf("a Seed prints as %q", s)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("the zero Seed made a token")
		}
	}()
	identity.Seed{}.AgentToken("i1")
}

func TestSeedRefusals(t *testing.T) {
	t.Parallel()
	good := strings.Repeat("ab", 32)
	for name, prepare := range map[string]func(path string) error{
		"readable by group": func(p string) error { return write(p, good, 0o640) },
		"readable by all":   func(p string) error { return write(p, good, 0o604) },
		"too short":         func(p string) error { return write(p, good[:62], 0o600) },
		"too long":          func(p string) error { return write(p, good+"abcd", 0o600) },
		"not hex":           func(p string) error { return write(p, strings.Repeat("zz", 32), 0o600) },
		"empty":             func(p string) error { return write(p, "", 0o600) },
		"directory":         func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		dir := t.TempDir()
		if err := prepare(filepath.Join(dir, "seed")); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.LoadSeed(dir); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: LoadSeed() = %v, want failed precondition", name, err)
		}
	}
}

func write(path, text string, mode os.FileMode) error {
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode) // whatever the umask
}
