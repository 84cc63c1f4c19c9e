package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/secret"
)

type holder struct {
	hidden secret.Value
	Shown  secret.Value
}

func TestNeverPrinted(t *testing.T) {
	t.Parallel()
	const text = "correct-horse"
	v := secret.New(text)
	h := holder{hidden: v, Shown: v}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, x := range []any{v, &v, h, &h, []secret.Value{v}, map[string]holder{"k": h}} {
			if got := fmt.Sprintf(format, x); strings.Contains(got, text) || strings.Contains(got, fmt.Sprintf("%x", text)) {
				t.Errorf("Sprintf(%q, %T) = %q", format, x, got)
			}
		}
	}
	encoded, err := json.Marshal(h)
	if err != nil || bytes.Contains(encoded, []byte(text)) {
		t.Errorf("Marshal = %s, %v", encoded, err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v, "h", h)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v, "h", h)
	if strings.Contains(log.String(), text) {
		t.Errorf("log = %s", log.String())
	}
	if v.Reveal() != text {
		t.Errorf("Reveal() = %q", v.Reveal())
	}
}

func TestEqual(t *testing.T) {
	t.Parallel()
	v := secret.New("token")
	for candidate, want := range map[string]bool{"token": true, "": false, "Token": false, "token ": false} {
		if got := v.Equal(candidate); got != want {
			t.Errorf("Equal(%q) = %v, want %v", candidate, got, want)
		}
	}
	var zero secret.Value
	if zero.Equal("") || !zero.IsZero() || !secret.New("").IsZero() {
		t.Error("the empty secret must equal nothing")
	}
}
