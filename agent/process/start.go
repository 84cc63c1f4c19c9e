package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	pb "github.com/caisson-dev/caisson/gen/process"
)

const (
	// Exit codes of a shell for what cannot be executed.
	exitNotExecutable = 126
	exitNotFound      = 127
	// firstUnusedPID is above every pid of Linux: a command that could not be
	// executed gets one from here, so that it can be told apart.
	firstUnusedPID = 1 << 30
	// systemTag marks processes that keep the agent's own priority.
	systemTag = "_system"
)

// start runs the command of req and returns it with a subscription to all its
// events but the first.
func (s *Service) start(ctx context.Context, req *connect.Request[pb.StartRequest]) (*proc, *subscriber, error) {
	msg := req.Msg
	cfg := msg.GetProcess()
	if cfg == nil || cfg.GetCmd() == "" {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, errors.New("process.cmd is empty"))
	}
	user, err := s.sess.HeaderUser(req.Header())
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeUnauthenticated, err)
	}
	dir, err := s.workdir(user, cfg)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	p := &proc{
		config:  cfg,
		tag:     msg.Tag,
		limits:  s.sess.Limits(),
		emit:    s.emit,
		release: make(chan struct{}),
	}
	sub, _ := p.hub.join()
	env := s.environment(user, cfg)
	path, code := lookup(cfg.GetCmd(), env["PATH"], dir)
	if code != 0 {
		s.cannotExecute(p, code, msg.GetPty() != nil)
		return p, sub, nil
	}
	if pt := msg.GetPty(); pt != nil {
		err = p.files.openTTY(pt.GetSize(), user)
	} else {
		err = p.files.openPipes(msg.Stdin == nil || *msg.Stdin)
	}
	if err != nil {
		p.files.close()
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	err = s.launch(ctx, p, child.Spec{
		Path: path, Args: append([]string{cfg.GetCmd()}, cfg.GetArgs()...), Env: list(env), Dir: dir, User: user,
		Stdin: p.files.stdin, Stdout: p.files.stdout, Stderr: p.files.stderr, TTY: msg.GetPty() != nil,
	})
	if err != nil {
		p.files.close()
		return s.startFailed(p, sub, msg, user, dir, err)
	}
	p.files.closeChildEnds()
	s.table.add(p)
	deadline, ok := ctx.Deadline()
	p.arm(deadline, ok)
	s.procs.Go(func() { p.supervise(s.table) })
	return p, sub, nil
}

// launch forks; a file that is executable but of no known format is a script
// for the shell.
func (s *Service) launch(ctx context.Context, p *proc, spec child.Spec) error {
	c, err := s.launcher.Start(ctx, spec)
	if errors.Is(err, syscall.ENOEXEC) {
		spec.Args = append([]string{"/bin/sh", spec.Path}, spec.Args[1:]...)
		spec.Path = "/bin/sh"
		c, err = s.launcher.Start(ctx, spec)
	}
	if err != nil {
		return err
	}
	p.child, p.pid = c, uint32(c.PID())
	return nil
}

// startFailed tells what an errno of fork, chdir or exec means to the client.
func (s *Service) startFailed(p *proc, sub *subscriber, msg *pb.StartRequest, user account.User, dir string, err error) (*proc, *subscriber, error) {
	hasTTY := msg.GetPty() != nil
	switch {
	case errors.Is(err, syscall.EACCES) && !mayEnter(user, dir):
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s': permission denied", dir))
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EISDIR):
		s.cannotExecute(p, exitNotExecutable, hasTTY)
		return p, sub, nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		s.cannotExecute(p, exitNotFound, hasTTY)
		return p, sub, nil
	case errors.Is(err, syscall.EAGAIN):
		p.limitEvent(control.LimitProcesses)
		return nil, nil, connect.NewError(connect.CodeResourceExhausted,
			fmt.Errorf("process limit of %d reached: %w", p.limits.Processes, err))
	case errors.Is(err, child.ErrStopped):
		return nil, nil, connect.NewError(connect.CodeUnavailable, err)
	case errors.Is(err, context.Canceled):
		return nil, nil, connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, nil, connect.NewError(connect.CodeDeadlineExceeded, errDeadline)
	}
	return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
}

// cannotExecute gives p the end that a shell would have given it.
func (s *Service) cannotExecute(p *proc, code int32, hasTTY bool) {
	p.files = streams{}
	p.pid = firstUnusedPID + s.unused.Add(1)%firstUnusedPID
	text := p.config.GetCmd() + ": not found\n"
	if code == exitNotExecutable {
		text = p.config.GetCmd() + ": permission denied\n"
	}
	data := stderrData([]byte(text))
	if hasTTY {
		data = ptyData([]byte(strings.ReplaceAll(text, "\n", "\r\n")))
	}
	// The queue of the one subscriber has room for both events.
	p.hub.publish(dataEvent(data))
	status := fmt.Sprintf("exit status %d", code)
	p.finish(s.table, &pb.ProcessEvent_EndEvent{ExitCode: code, Exited: true, Status: status, Error: &status})
}

// workdir returns the directory to start in. The error is for the client.
func (s *Service) workdir(user account.User, cfg *pb.ProcessConfig) (string, error) {
	dir, err := account.Resolve(user, s.sess.Workdir(), cfg.GetCwd())
	if err != nil {
		return "", fmt.Errorf("cwd: %w", err)
	}
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && cfg.GetCwd() == "":
		return "/", nil // a user without a home
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("cwd '%s' does not exist", dir)
	case err != nil:
		return "", fmt.Errorf("cwd '%s': %w", dir, errors.Unwrap(err))
	case !fi.IsDir():
		return "", fmt.Errorf("cwd '%s' is not a directory", dir)
	}
	return dir, nil
}

// environment layers the variables; later ones win.
func (s *Service) environment(u account.User, cfg *pb.ProcessConfig) map[string]string {
	env := map[string]string{"PATH": s.path, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name}
	maps.Copy(env, s.sess.Env())
	maps.Copy(env, cfg.GetEnvs())
	return env
}

func list(env map[string]string) []string {
	l := make([]string, 0, len(env))
	for k, v := range env {
		l = append(l, k+"="+v)
	}
	return l
}

// lookup finds the executable as execvp would from dir, or returns the exit
// code that a shell would have ended with.
func lookup(cmd, path, dir string) (string, int32) {
	if strings.Contains(cmd, "/") {
		return cmd, executable(cmd, dir)
	}
	code := int32(exitNotFound)
	for entry := range strings.SplitSeq(path, ":") {
		if entry == "" {
			entry = "."
		}
		// Join would drop a leading "./", which execve does not mind.
		candidate := filepath.Join(entry, cmd)
		switch executable(candidate, dir) {
		case 0:
			return candidate, 0
		case exitNotExecutable:
			code = exitNotExecutable
		}
	}
	return "", code
}

func executable(path, dir string) int32 {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	fi, err := os.Stat(path)
	switch {
	case err != nil && errors.Is(err, fs.ErrPermission):
		return exitNotExecutable
	case err != nil:
		return exitNotFound
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		return exitNotExecutable
	}
	return 0
}

// mayEnter reports whether u may search dir and all above it, by mode bits.
func mayEnter(u account.User, dir string) bool {
	if u.UID == 0 {
		return true
	}
	for {
		fi, err := os.Stat(dir)
		if err != nil {
			return false
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if ok && !searchable(u, st) {
			return false
		}
		if dir == "/" {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

func searchable(u account.User, st *syscall.Stat_t) bool {
	bit := uint32(0o001)
	switch {
	case st.Uid == u.UID:
		bit = 0o100
	case st.Gid == u.GID:
		bit = 0o010
	default:
		for _, g := range u.Groups {
			if st.Gid == g {
				bit = 0o010
			}
		}
	}
	return st.Mode&bit != 0
}
