// Package apierr turns errors into what callers see: an HTTP status and body, a
// Connect code, a CLI exit code. The class of an error comes from errdefs; what
// a user sees and what the log sees are two strings. Handlers of api and ingress
// return or pass errors here, and only this package writes status codes.
package apierr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Error is an error with a text meant for the caller. Build it with New, Field
// or Exceeds; any other error that carries an errdefs class works too, and then
// its own text is shown for the classes that blame the caller.
type Error struct {
	// Class is one of the errdefs sentinels.
	Class error
	// Message is shown to the caller.
	Message string
	// Code is a fixed name for programs (E2B's error_code); may be empty.
	Code string
	// Field names the request member at fault; may be empty.
	Field string
	// Limit names the limit that was hit or exceeded; may be empty.
	Limit string
	// RetryAfter is sent as a header when it is set.
	RetryAfter time.Duration
	// Cause goes to the log only; may be nil.
	Cause error
}

// New returns an error of an errdefs class whose text the caller sees.
func New(class error, format string, args ...any) *Error {
	return &Error{Class: class, Message: fmt.Sprintf(format, args...)}
}

// Field returns an invalid-argument error about one request member. Nothing was
// changed when it is returned.
func Field(field, format string, args ...any) *Error {
	return &Error{
		Class:   errdefs.ErrInvalidArgument,
		Message: field + ": " + fmt.Sprintf(format, args...),
		Field:   field,
	}
}

// Exceeds returns an invalid-argument error about a member that is above a
// limit of the server.
func Exceeds(field, limit, format string, args ...any) *Error {
	e := Field(field, format, args...)
	e.Limit = limit
	return e
}

// WithCause returns a copy whose cause is logged and never shown.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.Cause = err
	return &c
}

// WithCode returns a copy with a fixed name for programs.
func (e *Error) WithCode(code string) *Error {
	c := *e
	c.Code = code
	return &c
}

// Error implements error; it includes the cause and is for logs.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + e.Cause.Error()
}

// Unwrap gives the class and the cause to errors.Is.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Cause}
}

// Public is what a caller may know of an error.
type Public struct {
	Status  int
	Message string
	Code    string
	Field   string
	Limit   string
	// Internal is set when the text was replaced by a reference and the cause
	// belongs in the log.
	Internal bool
}

// Describe reduces err to its public part. reference is shown in place of the
// text of an internal error, so that the log can be searched for it.
func Describe(err error, reference string) Public {
	p := Public{Status: Status(err)}
	if e, ok := errors.AsType[*Error](err); ok {
		p.Code, p.Field, p.Limit = e.Code, e.Field, e.Limit
		if p.Status < 500 || p.Status == statusUnavailable || p.Status == statusNotImplemented || p.Status == statusTimeout {
			p.Message = e.Message
			return p
		}
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		p.Message = "the server's disk is full: free space below its data directory and try again"
		p.Internal = true
	case outOfFiles(err):
		p.Message, p.Code = "the server has no file descriptor left: end sandboxes, or raise its limit (LimitNOFILE of the unit, ulimit -n)", "file_limit"
		p.Internal = true
	case p.Status < 500, p.Status == statusUnavailable, p.Status == statusNotImplemented:
		p.Message = Text(err)
	case p.Status == statusTimeout:
		p.Message = "the server gave up waiting (reference " + reference + ")"
		p.Internal = true
	default:
		p.Message = "internal error (reference " + reference + ")"
		p.Internal = true
	}
	return p
}

// Text is the text of err without the words of its own errdefs class, which say
// nothing to people that the status does not say to programs.
func Text(err error) string {
	text := err.Error()
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
		errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrConflict, errdefs.ErrAborted,
		errdefs.ErrOutOfRange, errdefs.ErrNotImplemented, errdefs.ErrUnavailable, errdefs.ErrUnauthenticated,
	} {
		if !errors.Is(err, class) {
			continue // these words are somebody else's, the kernel's for example
		}
		words := class.Error()
		text = strings.ReplaceAll(text, ": "+words+": ", ": ")
		if rest := strings.TrimPrefix(text, words+": "); rest != "" {
			text = rest
		}
		if rest := strings.TrimSuffix(text, ": "+words); rest != "" {
			text = rest
		}
	}
	return text
}

// ErrTooLarge is the class of a request whose body is above its limit. It is an
// errdefs.ErrInvalidArgument with a status of its own.
var ErrTooLarge = fmt.Errorf("request too large: %w", errdefs.ErrInvalidArgument)

// ErrUnprocessable is the class of a request that is right by itself and
// contradicts an earlier one. It is an errdefs.ErrInvalidArgument with a status of
// its own.
var ErrUnprocessable = fmt.Errorf("request contradicts another: %w", errdefs.ErrInvalidArgument)

// Numbers of net/http, spelled here so that Describe reads as a table.
const (
	statusTooLarge       = 413
	statusUnprocessable  = 422
	statusNotImplemented = 501
	statusUnavailable    = 503
	statusTimeout        = 504
	statusClientGone     = 499
)

// Status maps the class of err to an HTTP status; 500 when it has none.
func Status(err error) int { return classOf(err).status }

// class is one row of the mapping table.
type class struct {
	is      func(error) bool
	status  int
	connect string
	exit    int
}

// The exit codes of the CLI; docs/cli.md lists them.
const (
	ExitFailure     = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitAuth        = 4
	ExitConflict    = 5
	ExitLimit       = 6
	ExitUnavailable = 7
	ExitTimeout     = 8
)

// outOfFiles says that this process, or the host, has no descriptor left.
func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

var internal = class{nil, 500, "internal", ExitFailure} //nolint:gochecknoglobals // a constant in all but syntax

// classOf finds the row of err. The order matters only where an error carries
// two classes: the one that blames the caller most precisely comes first.
func classOf(err error) class {
	for _, c := range []class{
		{errdefs.IsUnauthorized, 401, "unauthenticated", ExitAuth},
		{errdefs.IsPermissionDenied, 403, "permission_denied", ExitAuth},
		{errdefs.IsNotFound, 404, "not_found", ExitNotFound},
		{func(err error) bool { return errors.Is(err, ErrTooLarge) }, statusTooLarge, "resource_exhausted", ExitUsage},
		{func(err error) bool { return errors.Is(err, ErrUnprocessable) }, statusUnprocessable, "invalid_argument", ExitUsage},
		{errdefs.IsInvalidArgument, 400, "invalid_argument", ExitUsage},
		{errdefs.IsOutOfRange, 400, "out_of_range", ExitUsage},
		{errdefs.IsAlreadyExists, 409, "already_exists", ExitConflict},
		{errdefs.IsConflict, 409, "aborted", ExitConflict},
		{errdefs.IsAborted, 409, "aborted", ExitConflict},
		{errdefs.IsFailedPrecondition, 409, "failed_precondition", ExitConflict},
		{errdefs.IsResourceExhausted, 429, "resource_exhausted", ExitLimit},
		{errdefs.IsNotImplemented, statusNotImplemented, "unimplemented", ExitFailure},
		{outOfFiles, statusUnavailable, "unavailable", ExitUnavailable},
		{errdefs.IsUnavailable, statusUnavailable, "unavailable", ExitUnavailable},
		{func(err error) bool { return errors.Is(err, syscall.ENOSPC) }, statusUnavailable, "unavailable", ExitUnavailable},
		{errdefs.IsDeadlineExceeded, statusTimeout, "deadline_exceeded", ExitTimeout},
		{func(err error) bool { return errors.Is(err, context.Canceled) }, statusClientGone, "canceled", ExitFailure},
		{errdefs.IsCanceled, statusClientGone, "canceled", ExitFailure},
	} {
		if c.is(err) {
			return c
		}
	}
	return internal
}

// Connect maps the class of err to the name of a Connect code, "internal" when
// it has none.
func Connect(err error) string { return classOf(err).connect }

// Exit maps the class of err to an exit code of the CLI.
func Exit(err error) int {
	if err == nil {
		return 0
	}
	return classOf(err).exit
}

// FromStatus is the way back, for clients of the HTTP API: the errdefs class of
// a status, or nil for a success.
func FromStatus(status int) error {
	switch status {
	case statusTooLarge:
		return ErrTooLarge
	case statusUnprocessable:
		return ErrUnprocessable
	case 400:
		return errdefs.ErrInvalidArgument
	case 401:
		return errdefs.ErrUnauthenticated
	case 403:
		return errdefs.ErrPermissionDenied
	case 404:
		return errdefs.ErrNotFound
	case 409:
		return errdefs.ErrFailedPrecondition
	case 429:
		return errdefs.ErrResourceExhausted
	case statusNotImplemented:
		return errdefs.ErrNotImplemented
	case 502, statusUnavailable:
		return errdefs.ErrUnavailable
	case 408, statusTimeout:
		return context.DeadlineExceeded
	}
	if status >= 400 {
		return errdefs.ErrInternal
	}
	return nil
}
