package wire

import "errors"

// Code is the kind of an error, so that it survives the socket.
type Code string

// Error codes.
const (
	CodeInternal      Code = "internal"
	CodeInvalid       Code = "invalid"
	CodeNotFound      Code = "not_found"
	CodeAlreadyExists Code = "already_exists"
	CodePrecondition  Code = "failed_precondition"
	CodeUnenforceable Code = "unenforceable"
	CodeUnavailable   Code = "unavailable"
	CodeIncompatible  Code = "incompatible" // protocol version or snapshot ABI
)

// Error is an error that crosses the socket.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// AsError makes err fit for the socket: an *Error anywhere in its chain gives
// the code, and the text is that of the whole chain, at most 4 KiB.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	out := &Error{Code: CodeInternal, Message: err.Error()}
	if e, ok := errors.AsType[*Error](err); ok {
		out.Code = e.Code
	}
	const maxText = 4 << 10
	if len(out.Message) > maxText {
		out.Message = out.Message[:maxText]
	}
	return out
}
