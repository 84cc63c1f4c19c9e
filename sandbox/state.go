package sandbox

import "slices"

// next is the state table: what a state may become. A state may always be
// written again unchanged, save that ended ones are final.
func (s State) next() []State {
	switch s {
	case Pending:
		return []State{Running, Killing, Killed, Failed}
	case Running:
		return []State{Pausing, Killing, Killed}
	case Pausing:
		return []State{Paused, Running, Killing, Killed, Failed}
	case Paused:
		return []State{Resuming, Killing, Killed}
	case Resuming:
		return []State{Running, Paused, Killing, Killed, Failed}
	case Killing:
		return []State{Killed}
	case Killed, Failed:
		return nil
	default:
		return nil
	}
}

// CanBecome reports whether a record in state s may be written with state to.
func (s State) CanBecome(to State) bool {
	if s == to {
		return !s.Ended()
	}
	return slices.Contains(s.next(), to)
}

// Ended reports whether s is final.
func (s State) Ended() bool { return s == Killed || s == Failed }

// Unfinished lists every state that is not final.
func Unfinished() []State { return []State{Pending, Running, Pausing, Paused, Resuming, Killing} }
