// Package signature makes and checks the signatures of file links: URLs that
// carry a right to read or write one path instead of a token. It imports the
// standard library only; agent, ingress and SDK-facing code may import it.
package signature

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"time"
)

// Operation is what a link permits.
type Operation string

// The operations.
const (
	Read  Operation = "read"
	Write Operation = "write"
)

var (
	// ErrMissing says that the link has no signature.
	ErrMissing = errors.New("missing signature")
	// ErrInvalid says that the signature is not that of the link.
	ErrInvalid = errors.New("invalid signature")
	// ErrExpired says that the link was good once.
	ErrExpired = errors.New("signature is already expired")
)

// Size is the length of every signature, for a cheap check before hashing.
const Size = len("v1_") + 43

// Sign returns the signature of a link. expiry is the decimal text of the unix
// second in the link, or empty for a link that does not expire.
func Sign(path string, op Operation, user, token, expiry string) string {
	raw := path + ":" + string(op) + ":" + user + ":" + token
	if expiry != "" {
		raw += ":" + expiry
	}
	sum := sha256.Sum256([]byte(raw))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Check judges the query of a link against token, in constant time. It fails
// with ErrMissing, ErrInvalid or ErrExpired. An empty token signs nothing.
func Check(q url.Values, op Operation, token string, now time.Time) error {
	given := q.Get("signature")
	if given == "" {
		return ErrMissing
	}
	if token == "" || len(given) != Size {
		return ErrInvalid
	}
	expiry := ""
	var until int64
	if q.Has("signature_expiration") {
		n, err := strconv.ParseInt(q.Get("signature_expiration"), 10, 64)
		if err != nil {
			return ErrInvalid
		}
		until, expiry = n, strconv.FormatInt(n, 10)
	}
	want := Sign(q.Get("path"), op, q.Get("username"), token, expiry)
	if subtle.ConstantTimeCompare([]byte(want), []byte(given)) != 1 {
		return ErrInvalid
	}
	if expiry != "" && until < now.Unix() {
		return ErrExpired
	}
	return nil
}
