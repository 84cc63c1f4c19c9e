package bundle_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/caisson-dev/caisson/engine/bundle"
	"github.com/caisson-dev/caisson/engine/wire"
)

func full() wire.Create {
	return wire.Create{
		ID: "box", Hostname: "host", DiskBytes: 1 << 30, TmpBytes: 1 << 20, MemoryBytes: 1 << 29, CPUs: 2,
		Processes: 100, Files: 1000,
	}
}

func TestSpecPrivileges(t *testing.T) {
	t.Parallel()
	s := bundle.Spec(full())
	caps := s.Process.Capabilities
	for _, set := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
		for _, bad := range []string{"CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_NET_ADMIN"} {
			if slices.Contains(set, bad) {
				t.Errorf("the guest has %s", bad)
			}
		}
	}
	if len(caps.Inheritable) > 0 || len(caps.Ambient) > 0 {
		t.Errorf("capabilities would be inherited: %+v", caps)
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "bind") {
			t.Errorf("%s is a mount of the host's files", m.Destination)
		}
		if (m.Destination == "/sys" || m.Destination == wire.AgentMount) && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable", m.Destination)
		}
		if m.Destination == "/tmp" && !slices.Contains(m.Options, "size=1048576") {
			t.Errorf("/tmp has options %v, want its size", m.Options)
		}
	}
}

// What a checkpoint compares, or a restored process depends on, must not differ
// between boxes.
func TestSpecIsTheSameForAllBoxes(t *testing.T) {
	t.Parallel()
	a, b := full(), full()
	b.ID, b.Hostname, b.Rootfs, b.Agent = "other", "elsewhere", "/another", "/image"
	x, y := bundle.Spec(a), bundle.Spec(b)
	x.Hostname, y.Hostname = "", ""
	if !reflect.DeepEqual(x, y) {
		t.Errorf("specs differ:\n%+v\n%+v", x, y)
	}
}

func TestMounts(t *testing.T) {
	t.Parallel()
	m := bundle.Mounts(full())
	if got, want := m.String(), "erofs:anon:size=1073741824,erofs:none"; got != want {
		t.Errorf("Mounts() = %s, want %s", got, want)
	}
	m = bundle.Mounts(wire.Create{})
	if got, want := m.String(), "erofs:anon,erofs:none"; got != want {
		t.Errorf("Mounts(no limit) = %s, want %s", got, want)
	}
}

func TestWriteRefusesExisting(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "box")
	if err := bundle.Write(dir, full()); err != nil {
		t.Fatalf("Write() = %v", err)
	}
	fi, err := os.Stat(filepath.Join(dir, bundle.SpecFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("specification: %v, %v, want mode 0600", fi, err)
	}
	if err := bundle.Write(dir, full()); err == nil {
		t.Error("Write(existing directory) succeeded")
	}
}
