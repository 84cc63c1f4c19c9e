package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/containerd/errdefs"
)

// Seal encrypts what belongs to one id, for keeping it in the database:
// AES-256-GCM under a key derived from the seed, bound to kind and id. Whoever
// has the database without the seed file learns its length only.
func (s Seed) Seal(kind, id string, plain []byte) string {
	aead := s.aead(kind)
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce) //nolint:errcheck // crypto/rand.Read never fails: it crashes the program instead
	return base64.StdEncoding.EncodeToString(aead.Seal(nonce, nonce, plain, []byte(kind+id)))
}

// Unseal returns what Seal was given; errdefs.ErrDataLoss when it was sealed
// under another seed, kind or id, or was changed.
func (s Seed) Unseal(kind, id, sealed string) ([]byte, error) {
	aead := s.aead(kind)
	raw, err := base64.StdEncoding.DecodeString(sealed)
	if err == nil && len(raw) < aead.NonceSize() {
		err = fmt.Errorf("only %d bytes", len(raw))
	}
	var plain []byte
	if err == nil {
		plain, err = aead.Open(nil, raw[:aead.NonceSize()], raw[aead.NonceSize():], []byte(kind+id))
	}
	if err != nil {
		return nil, fmt.Errorf("unseal %s of %s (is the seed file the one it was sealed with?): %v: %w", kind, id, err, errdefs.ErrDataLoss) //nolint:errorlint // the kind is what matters
	}
	return plain, nil
}

func (s Seed) aead(kind string) cipher.AEAD {
	if s.key == nil {
		panic("identity: sealed under the zero Seed")
	}
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write([]byte("seal/" + kind))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err == nil {
		var aead cipher.AEAD
		if aead, err = cipher.NewGCM(block); err == nil {
			return aead
		}
	}
	panic(err) // a key of 32 bytes always works
}
