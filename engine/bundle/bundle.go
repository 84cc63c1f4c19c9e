// Package bundle turns a request for a box into what gVisor reads: an OCI
// runtime specification and the configuration of its EROFS mounts.
package bundle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/caisson-dev/caisson/engine/wire"
)

// PanicLog is the file in the bundle directory where a crashing sentry writes.
const PanicLog = "panic.log"

// ControlSocket is the sentry's control socket. It is relative to the working
// directory that engine and spawners share, since socket paths must be short.
func ControlSocket(id string) string { return "runsc-" + id + ".sock" }

// defaultFiles is RLIMIT_NOFILE when the request names none.
const defaultFiles = 65536

// SpecFile is the name of the specification in the bundle directory.
const SpecFile = "config.json"

// Write makes dir and puts the bundle of c into it.
func Write(dir string, c wire.Create) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make bundle directory: %w", err)
	}
	b, err := json.Marshal(Spec(c))
	if err != nil {
		return fmt.Errorf("encode specification: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, SpecFile), b, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// Spec is the OCI specification of a box. Arguments, environment and mount
// points are the same for all boxes; a restored box keeps the rlimits and sizes
// of the box that was saved.
func Spec(c wire.Create) *specs.Spec {
	files := uint64(defaultFiles)
	if c.Files > 0 {
		files = uint64(c.Files)
	}
	rlimits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: files, Soft: files}}
	if c.Processes > 0 {
		n := uint64(c.Processes)
		rlimits = append(rlimits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: n, Soft: n})
	}
	caps := Capabilities()
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.Hostname,
		// Never opened: the root file system comes as a descriptor.
		Root: &specs.Root{Path: "/rootfs"},
		Process: &specs.Process{
			Args: []string{wire.AgentPath},
			Cwd:  "/",
			// Freed memory of the agent is overwritten: what it forgets before a
			// checkpoint must not be in it.
			Env:          append(Env(), "GODEBUG=clobberfree=1"),
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      rlimits,
			// sudo is part of the contract; set-uid stays inside the sentry.
			NoNewPrivileges: false,
		},
		Mounts: mounts(c),
		Linux:  &specs.Linux{},
	}
}

func mounts(c wire.Create) []specs.Mount {
	tmp := []string{"nosuid", "mode=01777"}
	if c.TmpBytes > 0 {
		tmp = append(tmp, "size="+strconv.FormatInt(c.TmpBytes, 10))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		// gVisor makes this a devtmpfs; its size follows from total memory.
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: tmp},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: tmp},
		{Destination: wire.AgentMount, Type: "erofs", Source: "/agent", Options: []string{"ro"}},
	}
}

// Mounts configures the root file system and the agent's mount, in the order
// of the images that the spawner passes: root first.
func Mounts(c wire.Create) specutils.GoferMountConfFlags {
	root := specutils.GoferMountConf{Lower: specutils.Erofs, Upper: specutils.AnonOverlay}
	if c.DiskBytes > 0 {
		root.Size = strconv.FormatInt(c.DiskBytes, 10)
	}
	return specutils.GoferMountConfFlags{root, {Lower: specutils.Erofs, Upper: specutils.NoOverlay}}
}

// Env is the environment of the agent, and of processes that the engine starts
// inside.
func Env() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
	}
}

// Capabilities is what the agent may use inside. CAP_NET_RAW is not among them.
// CAP_SYS_RESOURCE exempts the agent, and nothing it starts, from the process
// limit: the agent takes it out of its children's bounding set.
func Capabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
		"CAP_SYS_RESOURCE",
	}
}
