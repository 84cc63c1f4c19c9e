package process

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/process"
)

const (
	// exitMemory is how long an ended process can still be connected to.
	exitMemory = 30 * time.Second
	// exitRecords bounds the memory of ended processes.
	exitRecords = 16384
)

// table holds the processes that run, in the order of their start, and those
// that ended a short while ago.
type table struct {
	mu    sync.Mutex // guards what follows
	procs []*proc
	past  []*ended // oldest first
	byPID map[uint32]*ended
	byTag map[string]*ended
}

type ended struct {
	pid uint32
	tag *string
	end *pb.ProcessEvent
	at  time.Time
}

func newTable() *table {
	return &table{byPID: make(map[uint32]*ended), byTag: make(map[string]*ended)}
}

// add registers p; records of an earlier process with its pid or tag go.
func (t *table) add(p *proc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.procs = append(t.procs, p)
	if old := t.byPID[p.pid]; old != nil {
		t.drop(old)
	}
	if p.tag != nil {
		if old := t.byTag[*p.tag]; old != nil {
			t.drop(old)
		}
	}
}

// end moves p from the running to the ended.
func (t *table) end(p *proc, ev *pb.ProcessEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.procs, p); i >= 0 {
		t.procs = slices.Delete(t.procs, i, i+1)
	}
	now := time.Now()
	t.expire(now)
	if slices.ContainsFunc(t.procs, func(other *proc) bool { return other.pid == p.pid }) {
		return // the pid is in use again
	}
	e := &ended{pid: p.pid, tag: p.tag, end: ev, at: now}
	t.past = append(t.past, e)
	t.byPID[e.pid] = e
	if e.tag != nil {
		t.byTag[*e.tag] = e
	}
}

// expire forgets what is too old or too much. The caller holds mu.
func (t *table) expire(now time.Time) {
	n := 0
	for n < len(t.past) && (len(t.past)-n >= exitRecords || now.Sub(t.past[n].at) >= exitMemory) {
		t.drop(t.past[n])
		n++
	}
	t.past = slices.Delete(t.past, 0, n)
}

// drop makes e unfindable. The caller holds mu.
func (t *table) drop(e *ended) {
	if t.byPID[e.pid] == e {
		delete(t.byPID, e.pid)
	}
	if e.tag != nil && t.byTag[*e.tag] == e {
		delete(t.byTag, *e.tag)
	}
}

// running returns the processes that have not been reaped.
func (t *table) running() []*proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.procs), (*proc).exited)
}

// each calls f for every process whose streams are open.
func (t *table) each(f func(*proc)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.procs {
		f(p)
	}
}

// live returns the selected process whose streams are open.
func (t *table) live(sel *pb.ProcessSelector) (*proc, error) {
	p, _, err := t.find(sel)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, notFound(sel)
	}
	return p, nil
}

// find returns the selected process, or the record of one that has ended.
func (t *table) find(sel *pb.ProcessSelector) (*proc, *ended, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(time.Now())
	var match func(*proc) bool
	var late *ended
	switch s := sel.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		// A process whose pid is in use again is behind its successor.
		for _, p := range slices.Backward(t.procs) {
			if p.pid == s.Pid {
				return p, nil, nil
			}
		}
		match = func(*proc) bool { return false }
		late = t.byPID[s.Pid]
	case *pb.ProcessSelector_Tag:
		match = func(p *proc) bool { return p.tag != nil && *p.tag == s.Tag }
		late = t.byTag[s.Tag]
	default:
		return nil, nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("process selector is empty"))
	}
	if i := slices.IndexFunc(t.procs, match); i >= 0 {
		return t.procs[i], nil, nil
	}
	if late != nil {
		return nil, late, nil
	}
	return nil, nil, notFound(sel)
}

func notFound(sel *pb.ProcessSelector) error {
	if s, ok := sel.GetSelector().(*pb.ProcessSelector_Tag); ok {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("process with tag '%s' not found", s.Tag))
	}
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d not found", sel.GetPid()))
}
