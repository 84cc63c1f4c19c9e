package sentry_test

import (
	"bytes"
	"os"
	"runtime"
	"testing"

	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/sentry/seccompgen"
)

const childEnv = "CAISSON_TEST_SECCOMP_CHILD"

// The embedded program must be what gVisor's rules compile to, else sandboxes
// would run under the filter of another gVisor.
func TestSeccompProgramIsCurrent(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skipf("no program is embedded for %s", runtime.GOARCH)
	}
	if os.Getenv(childEnv) != "" {
		b, err := seccompgen.Program()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.Write(b)
		os.Exit(0)
	}
	cmd := seccompgen.Command("-test.run=^TestSeccompProgramIsCurrent$")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	want, err := cmd.Output()
	if err != nil {
		t.Skipf("cannot start a process in a PID namespace: %v", err)
	}
	got, err := os.ReadFile("seccomp_amd64.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("seccomp_amd64.json is stale: run go generate ./sentry")
	}
}

func TestSeccompReady(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skipf("no program is embedded for %s", runtime.GOARCH)
	}
	if !sentry.SeccompReady() {
		t.Error("gVisor would not find the precompiled program under its key")
	}
}

func TestInvoked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want bool
	}{
		{[]string{"runsc-sandbox", "--root=.", "boot"}, true},
		{[]string{"/proc/self/exe", "umount"}, true},
		{[]string{"/proc/self/exe", "daemon"}, false},
		{[]string{"caisson-engine", "boot"}, false},
		{nil, false},
	} {
		if got := sentry.Invoked(tt.args); got != tt.want {
			t.Errorf("Invoked(%q) = %v, want %v", tt.args, got, tt.want)
		}
	}
}
