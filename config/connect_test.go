package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/caisson-dev/caisson/config"
	"github.com/containerd/errdefs"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if err := os.WriteFile(config.KeyFile(data), []byte("e2b_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(other, []byte("  e2b_other  \nrest"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		in       config.ConnectInputs
		url, key string
	}{
		"local":        {config.ConnectInputs{Data: data, Listen: "0.0.0.0:3000"}, "http://localhost:3000", "e2b_file"},
		"local v6 tls": {config.ConnectInputs{Data: data, Listen: "[::1]:3000", TLS: true}, "https://[::1]:3000", "e2b_file"},
		"e2b":          {config.ConnectInputs{Data: data, Env: config.Environ{"E2B_API_KEY=e2b_e", "E2B_API_URL=http://e"}}, "http://e", "e2b_e"},
		"ours wins":    {config.ConnectInputs{Data: data, Env: config.Environ{"E2B_API_KEY=e2b_e", "CAISSON_API_KEY=e2b_c", "E2B_API_URL=http://e", "CAISSON_API_URL=http://c"}}, "http://c", "e2b_c"},
		"flags win":    {config.ConnectInputs{Data: data, URL: "http://f", KeyFile: other, Env: config.Environ{"CAISSON_API_KEY=e2b_c", "CAISSON_API_URL=http://c"}}, "http://f", "e2b_other"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := config.Connect(tt.in)
			if err != nil || c.URL != tt.url || c.Key.Reveal() != tt.key {
				t.Errorf("Connect = %q, %q, %v, want %q, %q", c.URL, c.Key.Reveal(), err, tt.url, tt.key)
			}
		})
	}
}

func TestConnectURLFile(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	for name, text := range map[string]string{config.KeyFile(data): "k\n", config.URLFile(data): "http://127.0.0.1:4567\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := config.Connect(config.ConnectInputs{Data: data, Listen: "127.0.0.1:3000"})
	if err != nil || c.URL != "http://127.0.0.1:4567" {
		t.Errorf("Connect = %q, %v, want the URL of the file", c.URL, err)
	}
}

func TestConnectNoKey(t *testing.T) {
	t.Parallel()
	if _, err := config.Connect(config.ConnectInputs{Data: t.TempDir()}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Connect = %v, want failed precondition", err)
	}
}
