// Package kernel runs the programs that keep the state of a context of the code
// interpreter: one process each, which takes cells of code and sends what comes
// of them. Three kinds hide behind Kernel: Jupyter kernels over their messaging
// protocol (Python, R), runners of ours that speak lines of JSON (JavaScript,
// TypeScript, Java), and an interactive bash.
//
// It runs inside the sandbox and guards nothing: what a kernel sends is as
// untrusted as the code it runs, so every message is bounded before it is kept.
package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// MaxMessage bounds one message of a kernel: one display, or one piece of
// output. What is larger is dropped and said to be.
const MaxMessage = 64 << 20

// tooLarge is what the user reads in place of such a message.
const tooLarge = "output of one message was dropped: it is larger than 64 MiB\n"

// ErrDied says that the kernel's process ended, or was ended, before the cell
// was done.
var ErrDied = errors.New("kernel died")

// Cell is one piece of code to run.
type Cell struct {
	Code string
	// Language is that of the cell when the kernel knows several.
	Language string
	// Globals are set and stay; Env holds for this cell only.
	Globals, Env map[string]string
}

// Kind says what an Event is.
type Kind int

// The kinds of event.
const (
	// Count tells the number of the execution and comes first.
	Count Kind = iota + 1
	// Stdout and Stderr are pieces of output, in Text.
	Stdout
	Stderr
	// Result is a display or the value of the cell, in Data.
	Result
	// Error is an exception.
	Error
)

// Event is one output of a cell.
type Event struct {
	Kind  Kind
	Count int
	Text  string
	At    time.Time
	// Data is the value by MIME type, each as the kernel encodes it: text in
	// JSON strings, binary data as base64 in them, JSON as it is. Main tells
	// the cell's value from displays.
	Data map[string]json.RawMessage
	Main bool
	// Name, Value and Traceback describe an exception.
	Name, Value, Traceback string
}

// Kernel is one running kernel. Execute belongs to one goroutine at a time, the
// other methods to any.
type Kernel interface {
	// Execute runs a cell and calls emit for each of its events, from one
	// goroutine, until it is done. The kernel is held up while emit blocks.
	// An error of the code is an event, not an error. It returns ErrDied when
	// the process ended. It does not end with ctx by itself: interrupt the
	// kernel and go on emitting, or close it.
	Execute(ctx context.Context, c Cell, emit func(Event)) error
	// Interrupt asks the running cell to end.
	Interrupt()
	// Close kills the process with all that it started and waits for it.
	Close()
	// Resident is the memory in use by the process and what it started, in bytes.
	Resident() int64
	// Done is closed when the process has ended.
	Done() <-chan struct{}
}
