package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// The exit codes beside those of remote commands; docs/cli.md lists them.
const (
	exitError       = 1   // the command failed
	exitUsage       = 2   // the command line is wrong
	exitTimeout     = 124 // a remote command ran longer than its timeout
	exitOurs        = 125 // run, exec, shell: an error of ours, not of the remote command
	exitSignal      = 128 // plus the signal that ended a remote command
	exitInterrupted = 130 // Ctrl-C
)

// remote marks commands whose exit code is that of a remote command, so that
// their own errors need a code of their own.
const remote = "remote"

// codeError carries an exit code; a nil cause prints nothing.
type codeError struct {
	code  int
	cause error
}

func (e *codeError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e *codeError) Unwrap() error { return e.cause }

// exitWith ends with the code of a remote command; 0 is nil.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &codeError{code: code}
}

type usageError struct{ error }

func usage(err error) error { return usageError{err} }

func (e usageError) Unwrap() error { return e.error }

// hinted adds the next step to an error.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// hint adds the next step to an error; nil stays nil.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hinted{err, fmt.Sprintf(format, args...)}
}

func exitCode(root *cobra.Command, args []string, err error) int {
	if err == nil {
		return 0
	}
	if ce, ok := errors.AsType[*codeError](err); ok {
		return ce.code
	}
	if errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	if cmd, _, ferr := root.Find(args); ferr == nil && cmd.Annotations[remote] != "" {
		if errors.Is(err, client.ErrTimeout) {
			return exitTimeout
		}
		return exitOurs
	}
	if isUsage(err) {
		return exitUsage
	}
	return exitError
}

// errInterrupted ends a command that Ctrl-C stopped.
var errInterrupted = errors.New("interrupted")

func isUsage(err error) bool {
	if _, ok := errors.AsType[usageError](err); ok {
		return true
	}
	return strings.HasPrefix(err.Error(), "unknown command")
}

// printError writes what went wrong, then the next step on a line of its own.
func (s *session) printError(err error) {
	if ce, ok := errors.AsType[*codeError](err); ok && ce.cause == nil {
		return
	}
	if errors.Is(err, context.Canceled) && !errors.Is(err, errInterrupted) {
		err = errInterrupted
	}
	for i, line := range strings.Split(strings.TrimSpace(plain(err)), "\n") {
		prefix := "error: "
		if i > 0 {
			prefix = "       "
		}
		fmt.Fprintf(s.Err, "%s%s\n", prefix, terminal.Text(line))
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.RequestID != "" && e.Status >= 500 {
		fmt.Fprintf(s.Err, "       request %s in the server's log\n", terminal.Text(e.RequestID))
	}
	if next := nextStep(err); next != "" {
		fmt.Fprintf(s.Err, " hint: %s\n", terminal.Text(next))
	}
}

// plain drops the names of error classes from the text.
func plain(err error) string {
	text := err.Error()
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrPermissionDenied,
		errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrNotImplemented, errdefs.ErrConflict, errdefs.ErrInternal,
	} {
		text = strings.ReplaceAll(text, class.Error()+": ", "")
		text = strings.TrimSuffix(text, ": "+class.Error())
	}
	return text
}

// quoted puts quotes around what would otherwise run into the sentence.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, unicode.IsSpace) {
		return strconv.Quote(s)
	}
	return s
}

func nextStep(err error) string {
	if h, ok := errors.AsType[hinted](err); ok {
		return h.hint
	}
	if isUsage(err) {
		return "add --help for usage"
	}
	ce, ok := errors.AsType[*client.Error](err)
	switch {
	case !ok:
		return ""
	case ce.Code == "unreachable" && ce.Op == "wait for process":
		return "the command may still run: \"caisson sandbox exec SANDBOX -- ps aux\""
	case ce.Code == "unreachable" && ce.Status == 0:
		return "is the server running? Start one with \"caisson serve\", or name it with --url"
	case ce.Limit != "":
		return "limits are in the server's configuration; \"caisson config\" there shows them"
	case ce.Status == 501:
		return "this version of Caisson does not have it yet"
	}
	return ""
}
