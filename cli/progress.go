package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"charm.land/lipgloss/v2"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// progress shows the steps of long work on standard error: one line a step
// with its duration, when it has ended; on a terminal the current one is shown
// too.
type progress struct {
	s     *session
	live  bool
	begun time.Time
	// passing shows the current step and the time since the beginning, once that
	// is worth it, and nothing remains of it.
	passing bool

	mu      sync.Mutex // guards step, since, detail, drawn
	step    string
	since   time.Time
	detail  string
	drawn   bool
	stop    chan struct{}
	stopped sync.WaitGroup
}

func (s *session) newProgress() *progress {
	p := &progress{s: s, live: terminal.Is(s.Err) && !s.quiet, begun: time.Now(), stop: make(chan struct{})}
	if p.live {
		p.stopped.Go(p.animate)
	}
	return p
}

// passingAfter is how long something takes before it is shown as it passes.
const passingAfter = 300 * time.Millisecond

// watchCreate makes a create show its stages, where there is a terminal to show
// them on. end must be called when it has ended.
func (s *session) watchCreate(o *client.CreateOptions, asJSON bool) (end func()) {
	if asJSON || s.quiet || !terminal.Is(s.Err) {
		return func() {}
	}
	p := &progress{s: s, live: true, passing: true, begun: time.Now(), stop: make(chan struct{})}
	p.report("creating", "")
	o.Progress = func(st client.Stage) { p.report(st.Name, "") }
	p.stopped.Go(p.animate)
	return func() { p.end(nil) }
}

// report is a Progress.
func (p *progress) report(step, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if step == "" {
		p.detail = detail
		return
	}
	p.finish("done")
	p.step, p.detail, p.since = step, detail, time.Now()
}

// finish ends the current step; mu is held.
func (p *progress) finish(word string) {
	if p.step == "" {
		return
	}
	took := time.Since(p.since)
	if p.passing {
		p.step = ""
		return
	}
	if p.live {
		fmt.Fprintf(p.s.Err, "\r\x1b[K%s: %s (%s)\n", terminal.Text(p.step), word, short(took))
	} else {
		p.s.say("%s: %s (%s)\n", p.step, word, short(took))
	}
	p.step = ""
}

// conclude ends the current step with a word and a time that somebody else has
// measured.
func (p *progress) conclude(word string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != "" {
		p.since = time.Now().Add(-took)
	}
	p.finish(word)
	p.detail = ""
}

// end finishes the last step; err decides its word.
func (p *progress) end(err error) {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn && p.passing {
		fmt.Fprint(p.s.Err, "\r\x1b[K")
	}
	if err != nil {
		last := p.detail
		p.finish("failed")
		if last != "" {
			p.s.sayAlways("  last output: %s\n", last)
		}
		return
	}
	p.finish("done")
}

func (p *progress) animate() {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.draw()
		}
	}
}

func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step == "" {
		return
	}
	since := p.since
	if p.passing {
		since = p.begun
		if time.Since(since) < passingAfter {
			return
		}
	}
	p.drawn = true
	width, _ := terminal.Size(p.s.Err)
	line := fmt.Sprintf("%s … %s  %s", terminal.Text(p.step), short(time.Since(since)), terminal.Text(p.detail))
	if lipgloss.Width(line) >= width {
		line = lipgloss.NewStyle().MaxWidth(max(width-1, 10)).Render(line)
	}
	fmt.Fprintf(p.s.Err, "\r\x1b[K%s", strings.ReplaceAll(line, "\n", " "))
}

// short rounds a duration for people.
func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
