package gvisor_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
)

// open returns a provider on dir that is closed with the test. abis are those
// of saved memory.
func open(t *testing.T, dir string, abis ...string) *gvisor.Provider {
	t.Helper()
	p, err := gvisor.New(t.Context(), gvisor.Config{
		DataDir: dir, SavedABIs: func(context.Context) ([]string, error) { return abis, nil },
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if errors.Is(err, embedded.ErrAbsent) {
		t.Skipf("no real sandboxes: %v", err)
	}
	if err != nil {
		t.Fatalf("New() = %v\n%s", err, tail(filepath.Join(dir, "engine", "engine.log")))
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return p
}

// fresh returns a provider of its own, whose engine ends with the test.
func fresh(t *testing.T) (*gvisor.Provider, string) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		p, err := gvisor.New(ctx, gvisor.Config{DataDir: dir})
		if err != nil {
			return
		}
		defer p.Close()
		if err := p.StopEngine(ctx); err != nil {
			t.Errorf("StopEngine() = %v", err)
		}
		if t.Failed() {
			t.Logf("engine log:\n%s", tail(filepath.Join(dir, "engine", "engine.log")))
		}
	})
	return open(t, dir), dir
}

func tail(path string) []byte {
	b, _ := os.ReadFile(path)
	return b[max(0, len(b)-4096):]
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) { l.t.Logf("%s", b); return len(b), nil }

func TestSuite(t *testing.T) {
	rootfs := providertest.BuildRootfs(t)
	dirs := map[provider.Provider]string{}
	providertest.Run(t, func(t *testing.T) provider.Provider {
		p, dir := fresh(t)
		dirs[p] = dir
		return p
	}, providertest.Options{
		Tool: providertest.GuestTool, Rootfs: rootfs, User: providertest.GuestUser, OwnNetwork: true,
		Restart: func(t *testing.T, p provider.Provider) provider.Provider {
			if err := p.(*gvisor.Provider).Close(); err != nil {
				t.Fatalf("Close() = %v", err)
			}
			next := open(t, dirs[p])
			dirs[next] = dirs[p]
			return next
		},
		Leftovers: func(t *testing.T, p provider.Provider) []string { return leftovers(t, dirs[p]) },
	})
}

// leftovers lists everything that boxes of the provider in dir have on the
// host.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{
		dir + "/layers/*", dir + "/engine/boxes/*", dir + "/engine/ctl/*",
		gvisor.BoxCgroups(dir, "memory"), gvisor.BoxCgroups(dir, "cpu"), gvisor.BoxCgroups(dir, "cpuacct"), gvisor.BoxCgroups(dir, ""),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}
