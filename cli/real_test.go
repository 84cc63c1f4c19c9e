package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caisson-dev/caisson/cli/clitest"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/internal/testenv"
)

// TestScriptsOnRealServer runs the same scripts, and some that the stand-in could
// not pass, with the built program against a server of its own, whose sandboxes
// are real.
func TestScriptsOnRealServer(t *testing.T) {
	bin, data := os.Getenv("CAISSON_TEST_BIN"), os.Getenv("CAISSON_TEST_DATA")
	if bin == "" || data == "" {
		t.Skip("CAISSON_TEST_BIN and CAISSON_TEST_DATA name no built program with a prepared data directory; scripts/test.sh does")
	}
	if os.Geteuid() != 0 {
		t.Skip("real sandboxes with memory and CPU limits need root")
	}
	dir := t.TempDir()
	if err := testenv.CopyData(data, dir); err != nil {
		t.Fatal(err)
	}
	server, err := testenv.Start(t.Context(), testenv.Options{Binary: bin, Data: dir, Args: []string{
		"--destroy-on-exit", "--set", "pool.templates=base=2,bsae=1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	target := clitest.Target{URL: server.URL, KeyFile: config.KeyFile(dir), Bin: filepath.Dir(bin)}
	clitest.Scripts(t, target, "testdata/script")
	clitest.Scripts(t, target, "testdata/real")
}
