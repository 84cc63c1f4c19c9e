package template

import (
	"time"

	"github.com/caisson-dev/caisson/identity"
)

// Tag is a name of one build of a template.
type Tag struct {
	Name       string
	Build      BuildID
	AssignedAt time.Time
}

// Spawned says how much a template is used.
type Spawned struct {
	// Count is how many sandboxes were ever made of it, and Last when the
	// latest was; zero when none was.
	Count int64
	Last  time.Time
}

// The names of what is not a step of the recipe, in logs and for Build.Step.
const (
	StepBase     = "base"
	StepFinalize = "finalize"
)

// Entry is one line of the log of a build, as it is kept.
type Entry struct {
	// Seq counts the lines of a build from 1, without gaps.
	Seq   int64
	At    time.Time
	Level Level
	// Step is StepBase, the number of a step from 1 on, or StepFinalize.
	Step string
	Text string
	// Done is set on the line that ends a step; Cached and Duration tell of it.
	Done     bool
	Cached   bool
	Duration time.Duration
}

// Level is how much a line of a log matters; the order is that of the values.
type Level int

// The levels; the zero Level is Debug.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

// Levels are the names of the levels, the least first.
func Levels() []string { return []string{"debug", "info", "warn", "error"} }

// String returns the name of a level.
func (l Level) String() string { return Levels()[min(max(l, Debug), Error)] }

// ParseLevel returns the level of that name.
func ParseLevel(name string) (Level, bool) {
	for i, s := range Levels() {
		if s == name {
			return Level(i), true
		}
	}
	return Debug, false
}

// LogFilter selects lines of a build's log.
type LogFilter struct {
	Least Level
	// Step narrows to one step where it is set.
	Step string
	// Skip leaves out that many of the lines that would come first.
	Skip int64
	// Since and Until bound the time of the lines, inclusive; zero: no bound.
	Since, Until time.Time
	// Backward begins with the newest line; Skip and Since have no meaning then.
	Backward bool
	// Limit is how many lines at most, 1..1000.
	Limit int
}

// Pending is a build that a server began and did not end.
type Pending struct {
	Build    BuildID
	Template ID
	Team     identity.TeamID
	// Sealed is what BeginBuild was given.
	Sealed string
	// Attempts is how often it was begun, but for those that a server ended which
	// stopped in order.
	Attempts int
	// Cancelled says that it must be ended, not begun.
	Cancelled bool
}
