package all_test

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/provider/all"
)

func TestNames(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff([]string{"fake", "gvisor"}, all.Names()); diff != "" {
		t.Errorf("Names() (-want +got):\n%s", diff)
	}
	if _, err := all.New(t.Context(), "vmware", all.Config{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("New(unknown) = %v, want ErrInvalidArgument", err)
	}
	p, err := all.New(t.Context(), "fake", all.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("New(fake) = %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
}
