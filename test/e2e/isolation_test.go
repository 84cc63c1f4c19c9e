package e2e_test

import (
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every line is something that code which is root in its sandbox tries in
// order to reach the host. It must print nothing but "denied".
func TestHostIsOutOfReach(t *testing.T) {
	t.Parallel()
	marker := "caisson-marker-" + strings.ToLower(rand.Text())
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, marker), []byte(marker), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(home, marker+".sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := create(t, shared, nil)

	for name, line := range map[string]string{
		"host files":       `find / -xdev -name '` + marker + `*' 2>/dev/null | grep . || echo denied`,
		"host path":        `cat '` + filepath.Join(home, marker) + `' 2>/dev/null || echo denied`,
		"via pid 1 root":   `ls /proc/1/root` + home + ` 2>/dev/null | grep . || echo denied`,
		"host processes":   `ps -eo args | grep -E 'caisson serve|caisson-engine|runsc' | grep -v grep || echo denied`,
		"block device":     `mknod /tmp/d b 254 0 2>/dev/null && head -c 1 /tmp/d 2>/dev/null | wc -c | grep -v '^0$' || echo denied`,
		"kernel memory":    `mknod /tmp/m c 1 1 2>/dev/null && head -c 1 /tmp/m 2>/dev/null | wc -c | grep -v '^0$' || echo denied`,
		"module load":      `python3 -c 'import ctypes,os; l=ctypes.CDLL(None,use_errno=True); print("loaded" if l.syscall(175,b"x",1,b"")==0 else "denied")'`,
		"bpf":              `python3 -c 'import ctypes; l=ctypes.CDLL(None); print("bpf" if l.syscall(321,0,b"\0"*64,64)>=0 else "denied")'`,
		"raw packets":      `python3 -c 'import socket; socket.socket(socket.AF_PACKET,socket.SOCK_RAW,3); print("raw")' 2>/dev/null || echo denied`,
		"raw ip":           `python3 -c 'import socket; socket.socket(socket.AF_INET,socket.SOCK_RAW,1); print("raw")' 2>/dev/null || echo denied`,
		"release agent":    `mkdir -p /tmp/cg && mount -t cgroup -o memory none /tmp/cg 2>/dev/null; echo /tmp/x > /tmp/cg/release_agent 2>/dev/null && test -e ` + home + `/x && echo wrote || echo denied`,
		"core pattern":     `echo '|/tmp/x' > /proc/sys/kernel/core_pattern 2>/dev/null && echo wrote || echo denied`,
		"sysrq":            `echo h > /proc/sysrq-trigger 2>/dev/null && echo wrote || echo denied`,
		"host environment": `tr '\0' '\n' < /proc/1/environ | grep -E 'E2B_API_KEY|CAISSON_' || echo denied`,
		"control fd":       `ls -l /proc/1/fd 2>/dev/null | grep -E '` + filepath.Base(filepath.Dir(home)) + `' || echo denied`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := sh(t, shared, b, line)
			if strings.TrimSpace(r.Stdout) != "denied" {
				t.Errorf("%s\nstdout %q, stderr %q, want denied", line, r.Stdout, r.Stderr)
			}
		})
	}
}

func TestGuestKernelIsNotTheHosts(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	r := sh(t, shared, b, "uname -r; dmesg | head -n1; cat /proc/1/comm; grep -c . /proc/mounts")
	wantContains(t, "uname", r.Stdout, "gvisor", "caisson-agent")
	mounts := sh(t, shared, b, "awk '{print $3}' /proc/mounts | sort -u | tr '\\n' ' '")
	for _, fs := range strings.Fields(mounts.Stdout) {
		switch fs {
		case "overlay", "erofs", "proc", "tmpfs", "sysfs", "devpts", "devtmpfs", "dev", "cgroup", "none", "mqueue", "rootfs":
		default:
			t.Errorf("unexpected mount type %q in %q", fs, mounts.Stdout)
		}
	}
}

func TestSandboxesDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	a, b := create(t, shared, nil), create(t, shared, nil)
	sh(t, shared, a, "echo secret-of-a > /tmp/a; echo secret-of-a > /home/user/a; (python3 -m http.server 8000 >/dev/null 2>&1 &)")
	r := sh(t, shared, b, "cat /tmp/a /home/user/a 2>&1; curl -sS -m 3 http://10.0.0.2:8000/ 2>&1; curl -sS -m 3 http://"+shared.Addr+"/health 2>&1; curl -sS -m 3 http://10.0.0.1:3000/health 2>&1; true")
	if strings.Contains(r.Stdout, "secret-of-a") || strings.Contains(r.Stdout, "Directory listing") || strings.Contains(r.Stdout, "ok") {
		t.Errorf("b saw %q", r.Stdout)
	}
}
