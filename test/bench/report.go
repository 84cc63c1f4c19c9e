package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	c := slices.Clone(s)
	slices.Sort(c)
	return c[min(int(q*float64(len(c))), len(c)-1)]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// ms is empty for what was not measured.
func ms(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000)
}

type report struct {
	o     options
	start time.Time
	b     strings.Builder
	// checks belong below the table that is being written.
	checks []string
}

func newReport(o options, start time.Time) *report { return &report{o: o, start: start} }

func (r *report) section(title, method string) {
	r.flush()
	fmt.Fprintf(&r.b, "\n## %s\n\n%s\n\n", title, method)
}

func (r *report) table(header ...string) {
	fmt.Fprintf(&r.b, "| %s |\n|%s\n", strings.Join(header, " | "), strings.Repeat(" --- |", len(header)))
}

func (r *report) row(cells ...string) {
	line := "| " + strings.Join(cells, " | ") + " |"
	fmt.Fprintln(&r.b, line)
	fmt.Fprintln(os.Stderr, "   "+line)
}

// check records a target as met or missed; the report says either.
func (r *report) check(what string, ok bool, got, want string) {
	verdict := "met"
	if !ok {
		verdict = "**missed**"
	}
	r.checks = append(r.checks, fmt.Sprintf("* %s: %s, target %s: %s", what, got, want, verdict))
	fmt.Fprintf(os.Stderr, "   %s: %s (target %s): %s\n", what, got, want, verdict)
}

func (r *report) flush() {
	if len(r.checks) > 0 {
		fmt.Fprintf(&r.b, "\n%s\n", strings.Join(r.checks, "\n"))
	}
	r.checks = nil
}

func (r *report) write() error {
	r.flush()
	uname, err := exec.Command("uname", "-r").Output()
	if err != nil {
		return err
	}
	head := fmt.Sprintf("# Benchmarks\n\nWritten by `make bench` on %s in one run of %s: %d CPUs, Linux %s, %s. Milliseconds, unless a row says otherwise. "+
		"Rows of one table were measured in interleaved rounds, so compare within a table; another machine gives other figures and much the same ratios.\n",
		r.start.UTC().Format("2006-01-02"), time.Since(r.start).Round(time.Second), runtime.NumCPU(), strings.TrimSpace(string(uname)), runtime.Version())
	return os.WriteFile(r.o.out, []byte(head+r.b.String()), 0o644)
}
