// Package soak puts a server through many lives of sandboxes while its parts are
// killed, and checks that nothing was lost and nothing is left.
package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// Options say how hard it is made.
type Options struct {
	// Cycles is how many sandboxes are created, used and killed.
	Cycles int
	// Workers use sandboxes at a time. Default 4.
	Workers int
	// Chaos is after how many cycles, about, a part is killed; 0 means never.
	Chaos int
	// Seed makes the choices of one run those of another; timing still differs.
	Seed uint64
	// Say is told of progress.
	Say func(format string, args ...any)
}

// Result counts what happened.
type Result struct {
	Cycles, Pauses, Resumes, Forks, Snapshots, Commands int64
	// Kills counts what was killed, by name.
	Kills map[string]int
	// Ended counts sandboxes that ended early, by the server's reason for it.
	Ended         map[string]int
	Before, After testenv.Census
	// Problems are what should not have happened; at most some.
	Problems []string
}

// opLimit is when a call counts as one that hangs.
const opLimit = 90 * time.Second

// maxProblems are kept.
const maxProblems = 20

type run struct {
	o Options
	s *testenv.Server

	cycles, pauses, resumes, forks, snapshots, commands atomic.Int64

	// restart is held for writing while the server is away.
	restart sync.RWMutex
	// epoch counts kills: what fails in one in which something was killed may.
	epoch atomic.Int64

	mu       sync.Mutex // guards what follows
	kills    map[string]int
	ended    map[string]int
	problems []string
}

// Run does it, on a server that is up and stays up. The error is of the means,
// not of what is tested.
func Run(ctx context.Context, s *testenv.Server, o Options) (Result, error) {
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	r := &run{o: o, s: s, kills: map[string]int{}, ended: map[string]int{}}
	// Caches fill, pools of connections grow.
	for i := range 2 * o.Workers {
		r.cycle(ctx, rand.New(rand.NewPCG(o.Seed, uint64(1000+i))))
	}
	before, err := r.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	r.cycles.Store(0)

	var wg sync.WaitGroup
	left := atomic.Int64{}
	left.Store(int64(o.Cycles))
	busy, done := context.WithCancel(ctx)
	for w := range o.Workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(o.Seed, uint64(w)))
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				r.cycle(ctx, rng)
			}
		})
	}
	var killer sync.WaitGroup
	if o.Chaos > 0 {
		killer.Go(func() { r.chaos(busy) })
	}
	killer.Go(func() { r.progress(busy) })
	wg.Wait()
	done()
	killer.Wait()

	after, err := r.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	for _, g := range before.Grown(after) {
		r.problem("leak: %s", g)
	}
	return Result{
		Cycles: r.cycles.Load(), Pauses: r.pauses.Load(), Resumes: r.resumes.Load(),
		Forks: r.forks.Load(), Snapshots: r.snapshots.Load(), Commands: r.commands.Load(),
		Kills: r.kills, Ended: r.ended, Before: before, After: after, Problems: r.problems,
	}, ctx.Err()
}

// settle restarts the server, so that both counts are taken of one as young,
// and waits until what was killed has been cleared up.
func (r *run) settle(ctx context.Context) (testenv.Census, error) {
	r.s.Stop()
	if err := r.s.Restart(ctx); err != nil {
		return testenv.Census{}, err
	}
	// A snapshot whose answer was lost is nobody's.
	if err := r.deleteSnapshots(ctx); err != nil {
		return testenv.Census{}, err
	}
	// Each a real engine at work, once.
	for range r.o.Workers {
		if b, err := r.s.Create(ctx, nil); err == nil {
			_ = r.s.Kill(ctx, b)
		}
	}
	var c testenv.Census
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(time.Second) {
		boxes, err := r.s.BoxFiles()
		if err != nil {
			return c, err
		}
		if len(boxes) == 0 {
			break
		}
	}
	time.Sleep(3 * time.Second)
	c, err := r.s.Count(ctx)
	return c, err
}

func (r *run) problem(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, fmt.Sprintf(format, args...))
		r.o.Say("PROBLEM: "+format, args...)
	}
}

func (r *run) progress(ctx context.Context) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.o.Say("%d of %d cycles", r.cycles.Load(), r.o.Cycles)
		}
	}
}

// chaos kills something every now and then.
func (r *run) chaos(ctx context.Context) {
	rng := rand.New(rand.NewPCG(r.o.Seed, 7))
	for last := int64(0); ; {
		wait := int64(r.o.Chaos/2 + rng.IntN(r.o.Chaos) + 1)
		for r.cycles.Load() < last+wait {
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		last = r.cycles.Load()
		what := []string{"server", "engine", "spawner", "sandbox"}[rng.IntN(4)]
		r.epoch.Add(1)
		if !r.kill(ctx, what, rng) {
			continue
		}
		r.epoch.Add(1)
		r.mu.Lock()
		r.kills[what]++
		r.mu.Unlock()
	}
}

func (r *run) kill(ctx context.Context, what string, rng *rand.Rand) bool {
	engines := r.s.Processes("daemon")
	one := func(pids []int) bool {
		if len(pids) == 0 {
			return false
		}
		return syscall.Kill(pids[rng.IntN(len(pids))], syscall.SIGKILL) == nil
	}
	switch what {
	case "engine":
		return one(engines)
	case "spawner":
		boxes := r.s.Processes("/boxes/") // the engine's children, too, when their spawner died
		return one(slices.DeleteFunc(testenv.ChildrenOf(engines), func(pid int) bool { return slices.Contains(boxes, pid) }))
	case "sandbox":
		return one(r.s.Processes("/boxes/"))
	}
	r.restart.Lock()
	defer r.restart.Unlock()
	r.s.Kill9()
	if err := r.s.Restart(ctx); err != nil && ctx.Err() == nil {
		r.problem("the server does not start after kill -9: %v", err)
	}
	return true
}

// cycle is one life of a sandbox.
func (r *run) cycle(ctx context.Context, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	l := &life{run: r, rng: rng, epoch: r.epoch.Load()}
	if err := l.live(ctx); err != nil && ctx.Err() == nil {
		if errors.Is(err, errHangs) || r.epoch.Load() == l.epoch {
			r.problem("%s: %v", l.box.ID, err)
		} else {
			l.excuse(ctx, err)
		}
	}
	if l.box.ID != "" {
		l.end(ctx)
	}
	r.cycles.Add(1)
}

var errHangs = errors.New("the call hangs")

// life is one sandbox and what it must know.
type life struct {
	*run

	rng   *rand.Rand
	epoch int64
	box   testenv.Box
	sums  map[string]string // of acknowledged files
	pid   string            // of a process that counts
}

// do runs one call; only it may be failed by a server that is away.
func (l *life) do(ctx context.Context, what string, f func(context.Context) error) error {
	l.restart.RLock()
	defer l.restart.RUnlock()
	ctx, cancel := context.WithTimeoutCause(ctx, opLimit, errHangs)
	defer cancel()
	err := f(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errHangs) {
		return fmt.Errorf("%s: %w", what, errHangs)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (l *life) sh(ctx context.Context, script string) (out string, err error) {
	err = l.do(ctx, "command", func(ctx context.Context) error {
		res, err := l.s.Exec(ctx, l.box, "/bin/bash", "-c", script)
		if err != nil {
			return err
		}
		if res.ExitCode != 0 {
			return fmt.Errorf("exit %d: %s", res.ExitCode, res.Stderr)
		}
		out = strings.TrimSpace(res.Stdout)
		l.commands.Add(1)
		return nil
	})
	return out, err
}

// counter is a process that shows twenty times a second that it lives. It waits
// without starting another one, which would be most of what a run does.
const counter = `mkfifo /tmp/never; (exec 3<>/tmp/never; while :; do echo >> /tmp/n; read -rt 0.05 -u 3; done) >/dev/null 2>&1 & echo $!`

func (l *life) live(ctx context.Context) error {
	err := l.do(ctx, "create", func(ctx context.Context) (err error) {
		l.box, err = l.s.Create(ctx, map[string]any{"envVars": map[string]string{"WHO": "soak"}})
		return err
	})
	if err != nil {
		return err
	}
	l.sums = map[string]string{}
	if l.pid, err = l.sh(ctx, counter); err != nil {
		return err
	}
	for range 1 + l.rng.IntN(3) {
		if err := l.write(ctx); err != nil {
			return err
		}
		step := []func(context.Context) error{l.sleepAndWake, l.fork, l.snapshot}
		if i := l.rng.IntN(9); i < 4 {
			if err := step[max(i-1, 0)](ctx); err != nil {
				return err
			}
		}
		if err := l.check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file whose content only the sandbox knows.
func (l *life) write(ctx context.Context) error {
	name := fmt.Sprintf("f%d", len(l.sums))
	out, err := l.sh(ctx, fmt.Sprintf("cd /home/user && head -c %d /dev/urandom > %s && sync && sha256sum %s", 1<<(8+l.rng.IntN(13)), name, name))
	if err == nil {
		l.sums[name], _, _ = strings.Cut(out, " ")
	}
	return err
}

func (l *life) sleepAndWake(ctx context.Context) error {
	memory := l.rng.IntN(4) > 0
	err := l.do(ctx, "pause", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodPost, "/sandboxes/"+l.box.ID+"/pause", map[string]any{"memory": memory}, nil)
	})
	if err != nil {
		return err
	}
	l.pauses.Add(1)
	if !memory {
		l.pid = ""
	}
	err = l.do(ctx, "connect", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodPost, "/sandboxes/"+l.box.ID+"/connect", map[string]any{"timeout": 600}, nil)
	})
	if err == nil {
		l.resumes.Add(1)
	}
	return err
}

// check looks for lost files and lost processes.
func (l *life) check(ctx context.Context) error {
	if len(l.sums) > 0 {
		out, err := l.sh(ctx, "cd /home/user && sha256sum f*")
		if err != nil {
			return err
		}
		got := map[string]string{}
		for line := range strings.Lines(out) {
			if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
				got[name] = sum
			}
		}
		for name, sum := range l.sums {
			if got[name] != sum {
				l.problem("%s: %s is %s, was acknowledged as %s", l.box.ID, name, got[name], sum)
			}
		}
	}
	if l.pid == "" {
		return nil
	}
	got, err := l.sh(ctx, fmt.Sprintf(`kill -0 %s && mapfile a < /tmp/n || exit 2
		exec 3<>/tmp/never
		for i in {1..200}; do read -rt 0.05 -u 3; mapfile b < /tmp/n; [ ${#b[@]} -gt ${#a[@]} ] && echo counts && exit; done; exit 3`, l.pid))
	if err == nil && got != "counts" {
		l.problem("%s: the process in it does not go on: %q", l.box.ID, got)
	}
	return err
}

// excuse finds out why a life was cut short: either the sandbox has ended for a
// reason that the server can name, or it lives and must still know everything.
func (l *life) excuse(ctx context.Context, first error) {
	if l.box.ID == "" {
		return
	}
	var now record
	err := l.get(ctx, &now)
	if err != nil {
		if l.stillOn() {
			l.problem("%s: %v, after %v", l.box.ID, err, first)
		}
		return
	}
	if hasEnded(now.State) {
		l.countEnd(now.Reason)
		if now.Reason == "" || now.Reason == "timeout" {
			l.problem("%s ended with the reason %q, after %v", l.box.ID, now.Reason, first)
		}
		return
	}
	epoch := l.run.epoch.Load()
	err = l.do(ctx, "connect", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodPost, "/sandboxes/"+l.box.ID+"/connect", map[string]any{"timeout": 600}, nil)
	})
	if err == nil {
		l.pid = "" // a pause without memory may have gone through
		err = l.check(ctx)
	}
	if err != nil && (errors.Is(err, errHangs) || l.run.epoch.Load() == epoch) {
		// It may have ended between the two calls.
		gerr := l.get(ctx, &now)
		if gerr == nil && (hasEnded(now.State) || now.State == "killing") && now.Reason != "" {
			l.countEnd(now.Reason)
			return
		}
		if gerr == nil || l.run.epoch.Load() == epoch {
			l.problem("%s is %s and does not answer: %v, after %v; then %v", l.box.ID, now.State, err, first, gerr)
		}
	}
}

type record struct{ State, Reason string }

func (l *life) get(ctx context.Context, to *record) error {
	return l.do(ctx, "get", func(ctx context.Context) error {
		return l.s.API(ctx, http.MethodGet, "/native/v1/sandboxes/"+l.box.ID, nil, to)
	})
}

func hasEnded(state string) bool { return state == "killed" || state == "failed" }

func (l *life) countEnd(reason string) {
	l.run.mu.Lock()
	defer l.run.mu.Unlock()
	l.run.ended[reason]++
}

// stillOn reports whether nothing was killed since the life began to fail.
func (l *life) stillOn() bool { return l.run.epoch.Load() == l.epoch }

func (l *life) end(ctx context.Context) {
	if err := l.untilDone(ctx, "kill", func(ctx context.Context) error { return l.s.Kill(ctx, l.box) }); err != nil {
		l.problem("%s: %v", l.box.ID, err)
	}
}

// untilDone repeats what a kill of a part may have failed. Not to be found is
// done.
func (l *life) untilDone(ctx context.Context, what string, f func(context.Context) error) error {
	var err error
	for range 5 {
		epoch := l.run.epoch.Load()
		err = l.do(ctx, what, f)
		var status *testenv.StatusError
		if err == nil || (errors.As(err, &status) && status.Status == http.StatusNotFound) {
			return nil
		}
		if l.run.epoch.Load() == epoch {
			return err
		}
	}
	return err
}
