package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// docker is an engine of our own, so that the host's is left alone.
type docker struct {
	cmd        *exec.Cmd
	dir        string
	image      string
	network    string // for people
	networkArg string
}

func (d *docker) args(a ...string) []string {
	return append([]string{"-H", "unix://" + filepath.Join(d.dir, "docker.sock")}, a...)
}

func startDocker(ctx context.Context, o options) (*docker, error) {
	if o.rootfs == "" {
		return nil, fmt.Errorf("no root filesystem given")
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		return nil, err
	}
	for _, bridge := range []bool{true, false} {
		d, err := tryDocker(ctx, o, bridge)
		if err == nil {
			return d, nil
		}
		if !bridge {
			return nil, err
		}
	}
	return nil, fmt.Errorf("unreachable")
}

func tryDocker(ctx context.Context, o options, bridge bool) (*docker, error) {
	dir, err := os.MkdirTemp("", "caisson-bench-docker-")
	if err != nil {
		return nil, err
	}
	d := &docker{dir: dir, image: "caisson-bench", network: "bridge network", networkArg: "bridge"}
	args := []string{
		"-H", "unix://" + filepath.Join(dir, "docker.sock"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"),
	}
	if !bridge {
		d.network, d.networkArg = "no network", "none"
		args = append(args, "--iptables=false", "--bridge=none")
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	d.cmd = exec.Command("dockerd", args...)
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ready := false
	for range 100 {
		if exec.CommandContext(ctx, "docker", d.args("info")...).Run() == nil {
			ready = true
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if ready {
		imp := exec.CommandContext(ctx, "sh", "-c", `tar -C "$1" -c . | docker -H "$2" import - "$3"`, "sh", o.rootfs, "unix://"+filepath.Join(dir, "docker.sock"), d.image)
		if out, err := imp.CombinedOutput(); err != nil {
			d.stop()
			return nil, fmt.Errorf("docker import: %w: %s", err, out)
		}
		if _, err = firstLine(ctx, "docker", d.args("run", "--rm", "--network", d.networkArg, d.image, "/bin/echo", "hi")...); err == nil {
			return d, nil
		}
	}
	tail, _ := os.ReadFile(logFile.Name())
	d.stop()
	return nil, fmt.Errorf("docker engine does not run here: %s", tail[max(0, len(tail)-300):])
}

func (d *docker) stop() {
	if d == nil {
		return
	}
	_ = d.cmd.Process.Signal(os.Interrupt)
	_ = d.cmd.Wait()
	_ = os.RemoveAll(d.dir)
}
