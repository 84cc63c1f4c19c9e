package doctor_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/caisson-dev/caisson/cli/doctor"
	"github.com/caisson-dev/caisson/config"
)

func find(t *testing.T, cfg config.Config, name string) doctor.Result {
	t.Helper()
	checks := doctor.Host(cfg)
	i := slices.IndexFunc(checks, func(c doctor.Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %q", name)
	}
	return doctor.Run(t.Context(), checks[i:i+1]).Checks[0]
}

func settings(t *testing.T) config.Config {
	t.Helper()
	cfg := config.Defaults(nil)
	cfg.Data, cfg.Listen = t.TempDir(), "127.0.0.1:0"
	if err := os.Chmod(cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestHostNamesAFix(t *testing.T) {
	t.Parallel()
	r := doctor.Run(t.Context(), doctor.Host(settings(t)))
	if len(r.Checks) < 10 {
		t.Fatalf("only %d checks", len(r.Checks))
	}
	for _, c := range r.Checks {
		if c.Name == "" || c.Detail == "" {
			t.Errorf("check %+v says nothing", c)
		}
		if c.Status == doctor.Fail && c.Fix == "" {
			t.Errorf("check %s fails with %q and no way to mend it", c.Name, c.Detail)
		}
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := settings(t)
	cfg.Listen = l.Addr().String()
	if r := find(t, cfg, "port"); r.Status != doctor.Warn || !strings.Contains(r.Fix, "--listen") {
		t.Errorf("port = %+v, want a warning that names --listen", r)
	}
	cfg.Listen = "203.0.113.1:80"
	if r := find(t, cfg, "port"); r.Status != doctor.Fail {
		t.Errorf("port = %+v, want a failure for a foreign address", r)
	}
}

func TestDataDirectory(t *testing.T) {
	t.Parallel()
	cfg := settings(t)
	if r := find(t, cfg, "data directory"); r.Status != doctor.OK {
		t.Errorf("data directory = %+v, want ok", r)
	}
	seed := filepath.Join(cfg.Data, "seed")
	if err := os.WriteFile(seed, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := find(t, cfg, "data directory"); r.Status != doctor.Fail || r.Fix != "chmod 600 "+seed {
		t.Errorf("data directory with an open seed = %+v, want a failure with chmod", r)
	}
	cfg.Data = filepath.Join(cfg.Data, "a", "b")
	if r := find(t, cfg, "data directory"); r.Status != doctor.OK || !strings.Contains(r.Detail, "will be made") {
		t.Errorf("data directory = %+v, want that it will be made", r)
	}
}

func TestDiskSpace(t *testing.T) {
	t.Parallel()
	cfg := settings(t)
	cfg.Limits.DiskMiB = 1 << 40
	if r := find(t, cfg, "disk space"); r.Status == doctor.OK {
		t.Errorf("disk space = %+v, want a note when a sandbox may write more than there is", r)
	}
}

// TestCheckThatHangs bounds a check that does not heed its context.
func TestCheckThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := doctor.Run(t.Context(), []doctor.Check{
			{Name: "stuck", Run: func(context.Context) doctor.Result { <-release; return doctor.Result{} }},
			{Name: "fine", Run: func(context.Context) doctor.Result { return doctor.Result{Status: doctor.OK} }},
		})
		close(release)
		if r.OK || r.Checks[0].Status != doctor.Fail || r.Checks[1].Status != doctor.OK {
			t.Errorf("Run = %+v, want the stuck check to fail and the other to run", r)
		}
	})
}
