package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	pb "github.com/caisson-dev/caisson/gen/process"
)

// oomScoreAfter is the age at which a command gets its out-of-memory score.
const oomScoreAfter = 100 * time.Millisecond

var errDeadline = errors.New("the command's deadline has passed")

var signals = map[pb.Signal]syscall.Signal{
	pb.Signal_SIGNAL_SIGTERM: syscall.SIGTERM,
	pb.Signal_SIGNAL_SIGKILL: syscall.SIGKILL,
}

// proc is one command from its start to its end event.
type proc struct {
	config *pb.ProcessConfig
	tag    *string
	limits control.Limits
	emit   func(control.Event)

	pid   uint32
	child *child.Child // nil when the executable was missing
	hub   hub
	files streams

	written   atomic.Int64
	release   chan struct{} // closed: do not wait for the pipes any more
	releaseDo sync.Once

	mu      sync.Mutex // guards what follows
	reason  string     // why the agent killed it, empty if it did not
	overdue bool
	end     *pb.ProcessEvent
	timers  []*time.Timer
}

// supervise sees the process through to its end event and returns then.
func (p *proc) supervise(t *table) {
	var pumps sync.WaitGroup
	for _, o := range p.files.outputs {
		pumps.Go(func() { p.pump(o) })
	}
	drained := make(chan struct{})
	go func() { // ends with the pumps, for which this function waits
		pumps.Wait()
		close(drained)
	}()
	<-p.child.Done()
	select {
	case <-drained:
	case <-p.release:
		p.files.interrupt()
		<-drained
	}
	p.files.close()
	p.finish(t, p.outcome())
}

// finish makes ev the last event: first for those who ask later, then for
// those who listen.
func (p *proc) finish(t *table, ev *pb.ProcessEvent_EndEvent) {
	event := &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: ev}}
	p.mu.Lock()
	p.end = event
	for _, timer := range p.timers {
		timer.Stop()
	}
	p.timers = nil
	p.mu.Unlock()
	t.end(p, event)
	p.hub.finish(event)
}

func (p *proc) endEvent() *pb.ProcessEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end
}

// outcome describes the exit; the reason for a kill by the agent stands in
// place of the signal.
func (p *proc) outcome() *pb.ProcessEvent_EndEvent {
	status := p.child.Status()
	ev := &pb.ProcessEvent_EndEvent{ExitCode: -1}
	switch {
	case status.Exited():
		ev.ExitCode = int32(status.ExitStatus())
		ev.Exited = true
		ev.Status = fmt.Sprintf("exit status %d", status.ExitStatus())
	case status.Signaled():
		ev.Status = "signal: " + status.Signal().String()
		if status.CoreDump() {
			ev.Status += " (core dumped)"
		}
	}
	p.mu.Lock()
	reason := p.reason
	p.mu.Unlock()
	if reason != "" {
		ev.ExitCode, ev.Exited, ev.Status = -1, false, reason
	}
	if ev.ExitCode != 0 {
		ev.Error = new(ev.Status)
	}
	return ev
}

// exited reports whether the process itself has been reaped.
func (p *proc) exited() bool {
	if p.child == nil {
		return true
	}
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// letGo makes the end event follow the exit without waiting for the pipes.
func (p *proc) letGo() { p.releaseDo.Do(func() { close(p.release) }) }

// signal signals this one process. After SIGKILL it is reaped when signal
// returns, or killWait has passed.
func (p *proc) signal(ctx context.Context, sig syscall.Signal) error {
	if err := p.child.Signal(sig); err != nil {
		return err
	}
	p.letGo()
	if sig == syscall.SIGKILL {
		select {
		case <-p.child.Done():
		case <-time.After(killWait):
		case <-ctx.Done():
		}
	}
	return nil
}

// arm starts the clocks of the request's deadline, of the wall time limit and
// of the out-of-memory score: that matters only for a command which lasts, and
// would cost every short one.
func (p *proc) arm(deadline time.Time, hasDeadline bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		return
	}
	if p.tag == nil || *p.tag != systemTag {
		p.timers = append(p.timers, time.AfterFunc(oomScoreAfter, p.setOOMScore))
	}
	if hasDeadline {
		p.timers = append(p.timers, time.AfterFunc(time.Until(deadline), func() {
			p.mu.Lock()
			p.overdue = true
			p.mu.Unlock()
			p.letGo()
			p.child.KillTree()
		}))
	}
	if wall := p.limits.WallTime; wall > 0 {
		p.timers = append(p.timers, time.AfterFunc(wall, func() {
			p.killFor(control.LimitWallTime, fmt.Sprintf("killed: wall time limit of %s reached", seconds(wall)))
		}))
	}
}

func seconds(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return d.String()
}

// killFor kills the command and all it started because it hit a limit. Only
// the first reason counts.
func (p *proc) killFor(limit, reason string) {
	p.mu.Lock()
	if p.end != nil || p.reason != "" || p.overdue {
		p.mu.Unlock()
		return
	}
	p.reason = reason
	p.mu.Unlock()
	p.limitEvent(limit)
	p.letGo()
	p.child.KillTree()
}

func (p *proc) timedOut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.overdue
}

func (p *proc) limitEvent(limit string) {
	p.emit(control.Event{Type: control.EventLimit, Limit: limit, PID: p.pid, Cmd: commandText(p.config), At: time.Now()})
}

// commandText is what an event says of the command.
func commandText(c *pb.ProcessConfig) string {
	text := c.GetCmd()
	for _, a := range c.GetArgs() {
		if len(text) >= 256 {
			break
		}
		text += " " + a[:min(len(a), 256)]
	}
	return text[:min(len(text), 256)]
}

// setOOMScore makes the command a likelier victim than the agent; best effort.
func (p *proc) setOOMScore() {
	if p.exited() {
		return
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString("100")
}
