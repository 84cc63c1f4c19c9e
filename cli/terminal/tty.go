package terminal

import (
	"os"

	"golang.org/x/term"
)

// Is reports whether v is an open terminal: an *os.File that is one.
func Is(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Size returns the width and height of a terminal, or 80 by 24 when v is
// none.
func Size(v any) (cols, rows int) {
	if f, ok := v.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// Raw turns echo and line editing of a terminal off and returns what restores
// it; calling that more than once is harmless. For anything but a terminal it
// does nothing.
func Raw(v any) (restore func(), err error) {
	f, ok := v.(*os.File)
	if !ok || !Is(f) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }, nil
}
