package signature_test

import (
	"errors"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/signature"
)

const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"

func TestSign(t *testing.T) {
	t.Parallel()
	const want = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
	if got := signature.Sign("hello.txt", signature.Read, "user", token, ""); got != want {
		t.Errorf("Sign() = %s, want %s", got, want)
	}
	if len(want) != signature.Size {
		t.Errorf("Size = %d, want %d", signature.Size, len(want))
	}
}

func TestCheckWithoutToken(t *testing.T) {
	t.Parallel()
	q := url.Values{"path": {"p"}, "signature": {signature.Sign("p", signature.Read, "", "", "")}}
	if err := signature.Check(q, signature.Read, "", time.Now()); !errors.Is(err, signature.ErrInvalid) {
		t.Errorf("Check with an empty token = %v, want ErrInvalid", err)
	}
	if err := signature.Check(url.Values{}, signature.Read, token, time.Now()); !errors.Is(err, signature.ErrMissing) {
		t.Errorf("Check of nothing = %v, want ErrMissing", err)
	}
}

// FuzzCheck accepts a link exactly when it was signed for what it asks.
func FuzzCheck(f *testing.F) {
	f.Add("hello.txt", "user", int64(0), "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E")
	f.Add("a:read:b", "", int64(1<<40), "")
	f.Add("", ":", int64(-5), "v1_")
	f.Fuzz(func(t *testing.T, path, user string, expiry int64, sig string) {
		now := time.Unix(1_000_000, 0)
		q := url.Values{"path": {path}, "signature": {sig}}
		text := ""
		if user != "" {
			q.Set("username", user)
		}
		if expiry != 0 {
			text = strconv.FormatInt(expiry, 10)
			q.Set("signature_expiration", text)
		}
		good := signature.Sign(path, signature.Write, user, token, text)
		if err := signature.Check(q, signature.Write, token, now); (err == nil) != (sig == good && (expiry == 0 || expiry >= now.Unix())) {
			t.Fatalf("Check(%v) = %v", q, err)
		}
		q.Set("signature", good)
		err := signature.Check(q, signature.Write, token, now)
		if expired := expiry != 0 && expiry < now.Unix(); expired != errors.Is(err, signature.ErrExpired) || !expired && err != nil {
			t.Fatalf("Check(%v) = %v", q, err)
		}
		if err := signature.Check(q, signature.Read, token, now); !errors.Is(err, signature.ErrInvalid) {
			t.Fatalf("a write link reads: %v", err)
		}
	})
}
