package identity_test

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
)

func TestSeal(t *testing.T) {
	t.Parallel()
	seed := identity.NewSeed()
	sealed := seed.Seal("init/", "i1", []byte("secret"))
	if again := seed.Seal("init/", "i1", []byte("secret")); again == sealed {
		t.Error("sealing twice gave the same text")
	}
	got, err := seed.Unseal("init/", "i1", sealed)
	if err != nil || string(got) != "secret" {
		t.Fatalf("Unseal() = %q, %v", got, err)
	}
	flipped := []byte(sealed)
	flipped[20] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another id":   func() ([]byte, error) { return seed.Unseal("init/", "i2", sealed) },
		"another kind": func() ([]byte, error) { return seed.Unseal("other/", "i1", sealed) },
		"another seed": func() ([]byte, error) { return identity.NewSeed().Unseal("init/", "i1", sealed) },
		"changed":      func() ([]byte, error) { return seed.Unseal("init/", "i1", string(flipped)) },
		"cut":          func() ([]byte, error) { return seed.Unseal("init/", "i1", sealed[:8]) },
		"no base64":    func() ([]byte, error) { return seed.Unseal("init/", "i1", "?") },
	} {
		if got, err := open(); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: Unseal() = %q, %v, want data loss", name, got, err)
		}
	}
}
