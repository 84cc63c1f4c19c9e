package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"charm.land/lipgloss/v2"

	"github.com/caisson-dev/caisson/cli/terminal"
)

// progress shows the steps of long work on standard error: one line a step
// with its duration, when it has ended; on a terminal the current one is shown
// too.
type progress struct {
	s     *session
	live  bool
	begun time.Time

	mu      sync.Mutex // guards step, since, detail
	step    string
	since   time.Time
	detail  string
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
	if p.live {
		fmt.Fprintf(p.s.Err, "\r\x1b[K%s: %s (%s)\n", terminal.Text(p.step), word, short(took))
	} else {
		p.s.say("%s: %s (%s)\n", p.step, word, short(took))
	}
	p.step = ""
}

// end finishes the last step; err decides its word.
func (p *progress) end(err error) {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
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
	width, _ := terminal.Size(p.s.Err)
	line := fmt.Sprintf("%s … %s  %s", terminal.Text(p.step), short(time.Since(p.since)), terminal.Text(p.detail))
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
