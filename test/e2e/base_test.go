package e2e_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBaseTemplate runs what the contract says of the base template, the way
// the SDKs run commands.
func TestBaseTemplate(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	login := func(script string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := shared.Exec(ctx, b, "/bin/bash", "-l", "-c", script)
		if err != nil || r.ExitCode != 0 {
			t.Errorf("%s: exit code %d, %v\n%s", script, r.ExitCode, err, r.Stderr)
		}
		return r.Stdout
	}
	login(`mkdir -p /tmp/pack && cd /tmp/pack
echo '{"name":"hello-x","version":"1.0.0","bin":{"hello-x":"x.js"}}' > package.json
printf '#!/usr/bin/env node\nconsole.log("hi from npm")\n' > x.js && chmod +x x.js
echo "from setuptools import setup; setup(name='pyx', version='1', py_modules=['pyx'], entry_points={'console_scripts': ['pyx=pyx:main']})" > setup.py
echo "def main(): print('hi from pip')" > pyx.py`)
	for script, want := range map[string]string{
		"for t in python python3 pip node npm npx git curl ss pgrep tput jq sudo less vim.tiny nano wget unzip zip file lsof nc ssh ps ip; do command -v $t >/dev/null || echo $t; done": "",
		"id -un; id -Gn; pwd -P; echo ~":                          "user\nuser sudo\n/home/user\n/home/user\n",
		"sudo -n id -un":                                          "root\n",
		"python -c 'print(6*7)'; node -p '6*7'":                   "42\n42\n",
		"npm config get prefix":                                   "/usr/local\n",
		"tput -T xterm colors":                                    "8\n",
		"echo x > /code/x && cat /code/x && cat /etc/resolv.conf": "x\nnameserver 10.0.0.1\n",
		"cd /tmp/pack && npm pack --silent >/dev/null && npm install -g --offline --silent ./hello-x-1.0.0.tgz && hello-x": "hi from npm\n",
		"cd /tmp/pack && pip install -q --no-build-isolation --no-index . && pyx":                                          "hi from pip\n",
		"git init -q /tmp/r && cd /tmp/r && sudo chown root . && git status --porcelain && dpkg --audit":                   "",
		// The bash that maps no libraries, with what could be missing in one.
		"[ /bin/bash -ef /bin/bash-static ] && x=äö; echo ${#x}; echo ~root; type -t compgen; getent hosts localhost >/dev/null && exec 3<>/dev/tcp/localhost/49983 && echo connected": "2\n/root\nbuiltin\nconnected\n",
		"dpkg-divert --list /bin/bash": "local diversion of /bin/bash to /bin/bash.distrib\n",
	} {
		if got := login(script); got != want {
			t.Errorf("%s\n= %q, want %q", script, got, want)
		}
	}
}

// TestLoginShellForksNothing counts the processes between two commands: every
// command of the SDKs runs in a login shell.
func TestLoginShellForksNothing(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	pid := func() int {
		t.Helper()
		r, err := shared.Exec(t.Context(), b, "/bin/bash", "-l", "-c", "echo $$")
		n, bad := strconv.Atoi(strings.TrimSpace(r.Stdout))
		if err != nil || bad != nil {
			t.Fatalf("echo $$ = %+v, %v", r, err)
		}
		return n
	}
	// Threads of the agent have ids of the same row, and now and then one is made
	// meanwhile; a shell that forks does so every time.
	var apart []int
	for last := pid(); len(apart) < 5; {
		next := pid()
		apart, last = append(apart, next-last), next
	}
	if slices.Min(apart) != 1 {
		t.Errorf("shells are %v ids apart, want 1: each forks %d times", apart, slices.Min(apart)-1)
	}
}
