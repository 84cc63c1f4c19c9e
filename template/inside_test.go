package template_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// checkInside runs what the contract needs in a root made of the image.
func checkInside(t *testing.T, image string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Log("not run inside: mounting needs root")
		return
	}
	root := t.TempDir()
	lower, upper, merged := filepath.Join(root, "l"), filepath.Join(root, "u"), filepath.Join(root, "m")
	for _, d := range []string{lower, upper, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mount", "-t", "erofs", "-o", "loop,ro", image, lower)
	undo(t, lower)
	run(t, "mount", "-t", "tmpfs", "none", upper)
	undo(t, upper)
	for _, d := range []string{"up", "work"} {
		if err := os.Mkdir(filepath.Join(upper, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mount", "-t", "overlay", "none", "-o", "lowerdir="+lower+",upperdir="+upper+"/up,workdir="+upper+"/work", merged)
	undo(t, merged)
	for name, dev := range map[string]int{"null": 0x103, "urandom": 0x109, "random": 0x108, "zero": 0x105} {
		path := filepath.Join(merged, "dev", name)
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, dev); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	pack := filepath.Join(merged, "tmp/pack")
	files := map[string]string{
		"package.json": `{"name":"hello-x","version":"1.0.0","bin":{"hello-x":"x.js"}}`,
		"x.js":         "#!/usr/bin/env node\nconsole.log('hi from npm')\n",
		"setup.py":     "from setuptools import setup\nsetup(name='pyx', version='1', py_modules=['pyx'], entry_points={'console_scripts': ['pyx=pyx:main']})\n",
		"pyx.py":       "def main(): print('hi from pip')\n",
	}
	if err := os.Mkdir(pack, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(pack, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "chown", "-R", "1000:1000", pack)
	for script, want := range map[string]string{
		"for t in python python3 pip node npm npx git curl ss pgrep tput jq sudo less vim.tiny nano wget unzip zip file lsof nc ssh ps ip; do command -v $t >/dev/null || echo $t; done": "",
		"id -un; id -Gn; pwd -P; echo ~":                          "user\nuser sudo\n/\n/home/user\n",
		"sudo -n id -un":                                          "root\n",
		"python -c 'print(6*7)'; node -p '6*7'":                   "42\n42\n",
		"npm config get prefix":                                   "/usr/local\n",
		"tput -T xterm colors":                                    "8\n",
		"echo x > /code/x && cat /code/x && cat /etc/resolv.conf": "x\nnameserver 10.0.0.1\n",
		"cd /tmp/pack && npm pack --silent >/dev/null && npm install -g --offline --silent ./hello-x-1.0.0.tgz && hello-x": "hi from npm\n",
		"cd /tmp/pack && pip install -q --no-build-isolation --no-index . && pyx":                                          "hi from pip\n",
		"git init -q /tmp/r && cd /tmp/r && sudo chown root . && git status --porcelain && dpkg --audit":                   "",
	} {
		if got := inside(t, merged, script); got != want {
			t.Errorf("%s\n= %q, want %q", script, got, want)
		}
	}
	noForks(t, merged, filepath.Join(root, "trace"))
}

// noForks has login shells run built-in commands and counts their processes:
// every command of the SDKs runs in a login shell.
func noForks(t *testing.T, root, trace string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Log("forks of a login shell not counted: strace is not installed")
		return
	}
	for _, script := range []string{"true", "exit 0"} {
		cmd := exec.Command("strace", "-f", "-e", "trace=process", "-o", trace,
			"chroot", "--userspec=1000:1000", root, "/bin/bash", "-l", "-c", script)
		cmd.Env = []string{"HOME=/home/user", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", cmd.Args, err, out)
			continue
		}
		calls, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"fork(", "clone(", "clone3("} {
			if strings.Contains(string(calls), call) {
				t.Errorf("bash -l -c %s forks:\n%s", script, calls)
			}
		}
	}
}

// inside runs a script as the user in a login shell.
func inside(t *testing.T, root, script string) string {
	t.Helper()
	cmd := exec.Command("chroot", "--userspec=1000:1000", "--groups=1000,27", root, "/bin/bash", "-l", "-c", script)
	cmd.Env = []string{"HOME=/home/user", "USER=user", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v", script, err)
	}
	return string(out)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func undo(t *testing.T, mounted string) {
	t.Cleanup(func() {
		if err := syscall.Unmount(mounted, 0); err != nil {
			t.Errorf("unmount %s: %v", mounted, err)
		}
	})
}
