package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/config"
)

// Host returns the checks that need only the operating system.
func Host(cfg config.Config) []Check {
	plain := func(f func(config.Config) Result) func(context.Context) Result {
		return func(context.Context) Result { return f(cfg) }
	}
	return []Check{
		{"platform", plain(platform)},
		{"kernel", plain(kernel)},
		{"privileges", plain(privileges)},
		{"user namespaces", plain(userNamespaces)},
		{"cgroups", plain(cgroups)},
		{"seccomp", plain(seccomp)},
		{"open files", plain(openFiles)},
		{"memory", plain(memory)},
		{"data directory", plain(dataDirectory)},
		{"disk space", plain(diskSpace)},
		{"port", func(ctx context.Context) Result { return port(ctx, cfg) }},
		{"mmdebstrap", func(ctx context.Context) Result { return mmdebstrap(ctx, cfg) }},
		{"clock", plain(clock)},
	}
}

func platform(config.Config) Result {
	if runtime.GOOS != "linux" {
		return fail("run Caisson on Linux, for example in a virtual machine", "%s: gVisor needs Linux", runtime.GOOS)
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return fail("run Caisson on an amd64 or arm64 machine", "%s is not supported by gVisor", runtime.GOARCH)
	}
	return ok("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
}

func kernel(config.Config) Result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail("", "uname: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := release2(release)
	switch {
	case major < 4 || (major == 4 && minor < 14):
		return fail("upgrade to Linux 5.4 or newer", "Linux %s is older than 4.14, which gVisor needs", release)
	case major < 5 || (major == 5 && minor < 4):
		return warn("upgrade to Linux 5.4 or newer", "Linux %s works but is old", release)
	}
	return ok("Linux %s", release)
}

// release2 reads the first two numbers of a kernel release.
func release2(release string) (major, minor int) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(strings.TrimRight(parts[1], "-+abcdefghijklmnopqrstuvwxyz"))
	return major, minor
}

func privileges(config.Config) Result {
	if os.Geteuid() != 0 {
		return warn("run the server as root, or through the systemd unit, where memory and CPU must be limited; for trusted use set limits.unenforced: [memory, cpu]",
			"rootless: sandboxes are isolated, but memory and CPU limits need cgroups of the server's own")
	}
	return ok("root")
}

func userNamespaces(cfg config.Config) Result {
	if n, err := readInt("/proc/sys/user/max_user_namespaces"); err == nil && n == 0 {
		return fail("sysctl -w user.max_user_namespaces=15000", "user namespaces are turned off (user.max_user_namespaces is 0)")
	}
	if os.Geteuid() == 0 {
		return ok("available")
	}
	if n, err := readInt("/proc/sys/kernel/unprivileged_userns_clone"); err == nil && n == 0 {
		return fail("sysctl -w kernel.unprivileged_userns_clone=1", "unprivileged user namespaces are turned off")
	}
	if n, err := readInt("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); err == nil && n == 1 {
		return fail("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for caisson", "AppArmor restricts unprivileged user namespaces")
	}
	return ok("available to users")
}

func readInt(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// cgroups looks for controllers that this process may use, version 2 first.
func cgroups(cfg config.Config) Result {
	const root = "/sys/fs/cgroup"
	fix := "run as root or through the systemd unit with Delegate=yes; or set limits.unenforced: [memory, cpu]"
	if data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		have := strings.Fields(string(data))
		missing := slices.DeleteFunc([]string{"memory", "cpu"}, func(c string) bool { return slices.Contains(have, c) })
		own := ownCgroup(root)
		switch {
		case len(missing) > 0:
			return limitsOff(cfg, "enable the controllers in the parent group's cgroup.subtree_control", "version 2 without %s", strings.Join(missing, " and "))
		case unix.Access(own, unix.W_OK) != nil:
			return limitsOff(cfg, fix, "version 2, but %s is not writable", own)
		}
		return ok("version 2 with %s", strings.Join(have, " "))
	}
	var usable, missing []string
	for _, c := range []string{"memory", "cpu"} {
		if unix.Access(filepath.Join(root, c), unix.W_OK) == nil {
			usable = append(usable, c)
		} else {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return limitsOff(cfg, fix, "no writable controller for %s", strings.Join(missing, " and "))
	}
	return ok("version 1 with %s", strings.Join(usable, " and "))
}

// limitsOff is a failure unless the configuration accepts missing limits.
func limitsOff(cfg config.Config, fix, format string, args ...any) Result {
	if slices.Contains(cfg.Limits.Unenforced, "memory") && slices.Contains(cfg.Limits.Unenforced, "cpu") {
		r := warn(fix, format, args...)
		r.Detail += "; limits.unenforced accepts that"
		return r
	}
	return fail(fix, format, args...)
}

func ownCgroup(root string) string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return root
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, rest)
		}
	}
	return root
}

func seccomp(config.Config) Result {
	data, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if errors.Is(err, fs.ErrNotExist) {
		return fail("use a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp filters")
	}
	if err != nil {
		return warn("", "cannot tell: %v", err)
	}
	if !slices.Contains(strings.Fields(string(data)), "trap") {
		return fail("use a kernel with CONFIG_SECCOMP_FILTER", "seccomp lacks the action trap, which systrap needs")
	}
	return ok("filters with trap")
}

func openFiles(config.Config) Result {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return warn("", "cannot tell: %v", err)
	}
	if l.Max < 4096 {
		return warn("raise it: ulimit -n 65536, or LimitNOFILE= in the unit", "at most %d; 100 sandboxes need some 2000", l.Max)
	}
	return ok("%d", l.Max)
}

func memory(cfg config.Config) Result {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return warn("", "cannot tell: %v", err)
	}
	kib := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 {
			kib[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	free, one := kib["MemAvailable"]>>10, int64(cfg.Limits.MemoryMiB)
	if free < 512 {
		return warn("free memory or lower limits.memory_mib", "only %d MiB available", free)
	}
	if free < one {
		return warn("lower limits.memory_mib", "%d MiB available, and one sandbox may use %d MiB", free, one)
	}
	return ok("%d MiB available of %d MiB; a sandbox may use %d MiB", free, kib["MemTotal"]>>10, one)
}

// existing returns dir or its nearest parent that exists.
func existing(dir string) string {
	for dir != "/" && dir != "." {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func dataDirectory(cfg config.Config) Result {
	dir := existing(cfg.Data)
	if unix.Access(dir, unix.W_OK|unix.X_OK) != nil {
		return fail("choose another with --data, or change its owner", "%s is not writable", dir)
	}
	if dir != cfg.Data {
		return ok("%s will be made", cfg.Data)
	}
	st, err := os.Stat(dir)
	if err != nil || !st.IsDir() {
		return fail("choose another with --data", "%s is not a directory", dir)
	}
	for _, name := range []string{"seed", "api-key"} {
		if f, err := os.Stat(filepath.Join(dir, name)); err == nil && f.Mode().Perm()&0o077 != 0 {
			return fail(fmt.Sprintf("chmod 600 %s", filepath.Join(dir, name)), "%s can be read by other users", filepath.Join(dir, name))
		}
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fail("chmod 700 "+dir, "%s can be written by other users", dir)
	}
	return ok("%s", dir)
}

func diskSpace(cfg config.Config) Result {
	dir := existing(cfg.Data)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return warn("", "cannot tell: %v", err)
	}
	free := int64(st.Bavail) * st.Bsize >> 20
	if free < 1024 {
		return fail("free some space or choose another place with --data", "%d MiB free below %s; the base template alone needs 1 GiB", free, dir)
	}
	if free < int64(cfg.Limits.DiskMiB) {
		return warn("free some space, or lower limits.disk_mib", "%d MiB free below %s, and one sandbox may write %d MiB", free, dir, cfg.Limits.DiskMiB)
	}
	return ok("%d MiB free below %s", free, dir)
}

func port(ctx context.Context, cfg config.Config) Result {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err == nil {
		l.Close()
		return ok("%s is free", cfg.Listen)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		if _, serr := os.Stat(config.URLFile(cfg.Data)); serr == nil {
			return ok("%s is in use, by a server on %s it seems", cfg.Listen, cfg.Data)
		}
		return warn("choose another with --listen", "%s is in use", cfg.Listen)
	}
	return fail("choose another with --listen", "%v", err)
}

func mmdebstrap(ctx context.Context, cfg config.Config) Result {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return warn("apt-get install mmdebstrap, or build with \"caisson template build base --from-tar FILE\"", "not installed; building the base template needs it")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return warn("reinstall mmdebstrap", "%s does not run: %v", path, err)
	}
	return ok("%s for suite %s", strings.TrimSpace(string(out)), cfg.Template.Suite)
}

// clock fails for a clock that is plainly wrong: TLS and expiry depend on it.
func clock(config.Config) Result {
	now := time.Now()
	if now.Year() < 2025 || now.Year() > 2100 {
		return fail("set the clock, or start a time service", "it says %s", now.UTC().Format(time.RFC3339))
	}
	note := ""
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil && state == unix.TIME_ERROR {
		note = ", set by the host or by hand: the kernel knows of no time service"
	}
	return ok("%s%s", now.UTC().Format(time.RFC3339), note)
}
