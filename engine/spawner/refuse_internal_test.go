package spawner

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The filter cannot be removed, so the test runs itself as another process.
const asChild = "CAISSON_TEST_REFUSE"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "spawner" { // a pool starts its own executable
		script()
		return
	}
	if os.Getenv(asChild) == "" {
		os.Exit(m.Run())
	}
	if err := refuse(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, r := range refusals {
		_, _, errno := unix.RawSyscall(uintptr(r.nr), uintptr(r.arg), 0, 0)
		fmt.Printf("%d/%d: %d\n", r.nr, r.arg, errno)
	}
	// The same calls with other arguments are the kernel's business.
	_, _, query := unix.RawSyscall(unix.SYS_MEMBARRIER, 0, 0, 0)
	fmt.Printf("query: %d\n", query)
	os.Exit(0)
}

func TestRefuse(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asChild+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var want strings.Builder
	for _, r := range refusals {
		fmt.Fprintf(&want, "%d/%d: %d\n", r.nr, r.arg, r.errno)
	}
	want.WriteString("query: 0\n")
	if string(out) != want.String() {
		t.Errorf("got\n%swant\n%s", out, want.String())
	}
}
