package cli_test

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/config"
)

var update = flag.Bool("update", false, "rewrite the golden help texts")

var commands = []string{
	"", "run", "serve", "init", "doctor", "config", "version", "key", "key create", "key list", "key revoke", "usage",
	"sandbox", "sandbox create", "sandbox list", "sandbox status", "sandbox run", "sandbox exec", "sandbox shell",
	"sandbox cp", "sandbox logs", "sandbox egress", "sandbox pause", "sandbox resume", "sandbox stop", "template", "template build", "template list",
	"template delete", "template init", "template inspect", "template publish", "egress", "egress check", "egress allow", "pool", "pool status",
	"sandbox snapshot", "sandbox fork", "sandbox tree",
	"snapshot", "snapshot list", "snapshot delete", "snapshot prune", "sandbox rollback", "sandbox promote", "sandbox diff",
	"sandbox prune", "sandbox metrics", "budget", "budget show", "budget set",
}

// TestHelp compares every help text with its golden file.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			app := cli.App{Version: "test", In: strings.NewReader(""), Out: &out, Err: io.Discard, Env: config.Environ{}}
			if code := app.Run(t.Context(), append(strings.Fields(command), "--help")); code != 0 {
				t.Fatalf("help = %d", code)
			}
			var lines []string
			for line := range strings.Lines(out.String()) {
				lines = append(lines, strings.TrimRight(line, " \n"))
			}
			got := strings.TrimSpace(strings.Join(lines, "\n")) + "\n"
			if command != "" && strings.Count(command, " ") == 1 && !strings.Contains(got, "EXAMPLES") {
				t.Errorf("help of %q has no example", command)
			}
			golden := filepath.Join("testdata", "help", strings.ReplaceAll(strings.TrimSpace("caisson "+command), " ", "-")+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != got {
				t.Errorf("help of %q differs from %s; run with -update when that is meant:\n%s", command, golden, got)
			}
		})
	}
}
