package fake_test

import (
	"log/slog"
	"testing"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/provider/providertest"
)

func TestSuite(t *testing.T) {
	providertest.Run(t, func(t *testing.T) provider.Provider {
		p, err := fake.New(fake.Config{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}, providertest.Options{
		Tool:   providertest.BuildTool(t),
		Rootfs: image.Rootfs{Digest: "sha256:none", Path: "/"},
	})
}
