package machine_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/machine"
)

func TestApply(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("etc/hosts", "127.0.0.1 localhost")
	put("etc/ssl/certs/ca-certificates.crt", "SYSTEM\n")
	m := machine.Machine{Root: root, Log: slog.New(slog.DiscardHandler)}
	for _, id := range []string{"first", "second", "second"} { // repeated after a restore
		err := m.Apply(t.Context(), control.Init{SandboxID: id, TemplateID: "t", BuildID: "b", Hostname: id, CABundle: "CA of " + id})
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		".e2b":                              "ENV_ID=t\nTEMPLATE_ID=t\nBUILD_ID=b\n",
		"run/e2b/.E2B_SANDBOX":              "true",
		"run/e2b/.E2B_SANDBOX_ID":           "second",
		"run/e2b/.E2B_TEMPLATE_ID":          "t",
		"etc/hostname":                      "second\n",
		"etc/hosts":                         "127.0.0.1 localhost\n# caisson begin\n127.0.1.1 second\n# caisson end\n",
		"etc/ssl/certs/ca-certificates.crt": "SYSTEM\n# caisson begin\nCA of second\n# caisson end\n",
	}
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(root, name))
		if diff := cmp.Diff(content, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestApplyFails(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "run"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m := machine.Machine{Root: root, Log: slog.New(slog.DiscardHandler)}
	if err := m.Apply(t.Context(), control.Init{SandboxID: "i"}); err == nil {
		t.Error("Apply succeeded without its marker files")
	}
}
