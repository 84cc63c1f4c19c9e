package pool

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // hosts without zone files have schedules, too

	"github.com/containerd/errdefs"
)

// MaxHot bounds what a plan may ask for.
const MaxHot = 10_000

// Plan says how many boxes of a key are kept at what time.
type Plan struct {
	// Hot is how many outside of the windows.
	Hot int
	// Windows take precedence, the first that matches.
	Windows []Window
}

// Window is a recurring time in which another number is kept.
type Window struct {
	Days     [7]bool // by time.Weekday: the day on which it begins
	From, To int     // minutes of the day; To before From reaches into the next day
	Zone     *time.Location
	Hot      int
}

// At is how many boxes are kept at a time.
func (p Plan) At(t time.Time) int {
	for _, w := range p.Windows {
		if w.covers(t) {
			return w.Hot
		}
	}
	return p.Hot
}

// Most is the largest number that the plan ever keeps.
func (p Plan) Most() int {
	most := p.Hot
	for _, w := range p.Windows {
		most = max(most, w.Hot)
	}
	return most
}

func (w Window) covers(t time.Time) bool {
	t = t.In(w.Zone)
	minute := t.Hour()*60 + t.Minute()
	if w.From < w.To {
		return w.Days[t.Weekday()] && minute >= w.From && minute < w.To
	}
	yesterday := (t.Weekday() + 6) % 7
	return w.Days[t.Weekday()] && minute >= w.From || w.Days[yesterday] && minute < w.To
}

// form explains how plans are written.
const form = `write a number, or "2; mon-fri 08:00-18:00 Europe/Berlin 16"`

// ParsePlan reads "HOT", or "HOT; DAYS HH:MM-HH:MM [ZONE] HOT; …", for example
// "2; mon-fri 08:00-18:00 Europe/Berlin 16". Without a zone it is UTC.
func ParsePlan(s string) (Plan, error) {
	first, rest, more := strings.Cut(s, ";")
	var plan Plan
	var err error
	if plan.Hot, err = number(first); err != nil {
		return Plan{}, err
	}
	for more {
		first, rest, more = strings.Cut(rest, ";")
		w, err := parseWindow(strings.Fields(first))
		if err != nil {
			return Plan{}, err
		}
		plan.Windows = append(plan.Windows, w)
	}
	return plan, nil
}

func parseWindow(f []string) (Window, error) {
	invalid := func(what string) (Window, error) {
		return Window{}, fmt.Errorf("%q has no %s: %s: %w", strings.Join(f, " "), what, form, errdefs.ErrInvalidArgument)
	}
	w := Window{Zone: time.UTC}
	if len(f) < 3 || len(f) > 4 {
		return invalid("days, times and number")
	}
	if !w.days(strings.ToLower(f[0])) {
		return invalid("weekdays such as mon or mon-fri")
	}
	from, to, _ := strings.Cut(f[1], "-")
	var ok1, ok2 bool
	w.From, ok1 = minutes(from)
	w.To, ok2 = minutes(to)
	if !ok1 || !ok2 || w.From == w.To {
		return invalid("times of day such as 08:00-18:00")
	}
	var err error
	if len(f) == 4 {
		if w.Zone, err = time.LoadLocation(f[2]); err != nil || f[2] == "Local" {
			return invalid("time zone such as Europe/Berlin or UTC")
		}
	}
	w.Hot, err = number(f[len(f)-1])
	return w, err
}

func number(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 0 || n > MaxHot {
		return 0, fmt.Errorf("%q is no number from 0 to %d: %s: %w", strings.TrimSpace(s), MaxHot, form, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// minutes reads HH:MM, up to 24:00.
func minutes(s string) (int, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	hours, err1 := strconv.ParseUint(s[:2], 10, 8)
	mins, err2 := strconv.ParseUint(s[3:], 10, 8)
	ok := err1 == nil && err2 == nil && (hours < 24 && mins < 60 || hours == 24 && mins == 0)
	return int(hours*60 + mins), ok
}

// days sets the days that "mon" or "mon-fri" names.
func (w *Window) days(s string) bool {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	const names = "sunmontuewedthufrisat"
	from, to := strings.Index(names, first), strings.Index(names, last)
	if len(first) != 3 || len(last) != 3 || from < 0 || to < 0 || from%3 != 0 || to%3 != 0 {
		return false
	}
	for d := from / 3; ; d = (d + 1) % 7 {
		w.Days[d] = true
		if d == to/3 {
			return true
		}
	}
}

const (
	// remembered is how long demand counts, in seconds.
	remembered = 300
	// together is the time within which creates count as one burst, in seconds:
	// about what refilling takes.
	together = 10
)

// demand counts what was asked for in each of the last seconds.
type demand struct {
	counts [remembered]int
	last   int64 // second of the newest count
}

// note counts one box that was asked for.
func (d *demand) note(now time.Time) {
	d.advance(now)
	d.counts[d.last%remembered]++
}

// advance forgets what is too long ago.
func (d *demand) advance(now time.Time) {
	s := now.Unix()
	if s-d.last >= remembered {
		d.counts, d.last = [remembered]int{}, s
		return
	}
	for d.last < s {
		d.last++
		d.counts[d.last%remembered] = 0
	}
}

// peak is the most that was asked for within any few seconds lately.
func (d *demand) peak(now time.Time) int {
	d.advance(now)
	most, sum := 0, 0
	for i := int64(1); i <= remembered; i++ { // from the oldest second on
		sum += d.counts[(d.last+i)%remembered]
		if i > together {
			sum -= d.counts[(d.last+i-together)%remembered]
		}
		most = max(most, sum)
	}
	return most
}

func (d *demand) idle(now time.Time) bool { return d.peak(now) == 0 }
