package kernel

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a kernel's process: the leader of a group, ended with us.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once
}

// startProcess starts cmd, whose ends of pipes in inherited are closed here.
func startProcess(cmd *exec.Cmd, inherited ...io.Closer) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// What outlives the kernel and holds its pipes is not waited for.
	cmd.WaitDelay = 100 * time.Millisecond
	err := cmd.Start()
	for _, c := range inherited {
		_ = c.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("start kernel: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) Done() <-chan struct{} { return p.done }

// signal reaches the whole group: a kernel's children too.
func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = unix.Kill(-p.cmd.Process.Pid, s)
	}
}

func (p *process) Interrupt() { p.signal(syscall.SIGINT) }

func (p *process) kill() {
	p.once.Do(func() { p.signal(syscall.SIGKILL) })
	<-p.done
}

// ending says how the process ended; only after done.
func (p *process) ending() string {
	if s := p.cmd.ProcessState; s != nil {
		return s.String()
	}
	return "ended"
}

// pipe is os.Pipe whose ends are closed together on a later error.
func pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("start kernel: %w", err)
	}
	return r, w, nil
}
