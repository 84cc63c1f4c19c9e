package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"
)

// Error is what a server, or the way to it, answered. It matches the classes
// of package errdefs with errors.Is.
type Error struct {
	// Op is the call, for example "GET /native/v1/sandboxes/i1".
	Op string
	// Status is the HTTP status; 0 when no answer came.
	Status int
	// Code is a fixed word for programs where the server gave one: its
	// error_code, a Connect code, or "unreachable".
	Code string
	// Message is for people.
	Message string
	// Field names the request member at fault, Limit the limit that was hit.
	Field, Limit string
	// RequestID finds the cause in the server's log.
	RequestID string

	cause error
}

// Error gives the message with the field at fault.
func (e *Error) Error() string {
	msg := e.Message
	if msg == "" {
		msg = http.StatusText(e.Status)
	}
	if e.Field != "" && !strings.Contains(msg, e.Field) {
		msg = e.Field + ": " + msg
	}
	return msg
}

// Unwrap gives the cause of a transport error.
func (e *Error) Unwrap() error { return e.cause }

// Is matches the errdefs class of the status.
func (e *Error) Is(target error) bool {
	if target == errdefs.ErrUnavailable && e.Code == "unreachable" {
		return true
	}
	class, ok := classes[e.Status]
	return ok && target == class
}

var classes = map[int]error{
	http.StatusBadRequest:            errdefs.ErrInvalidArgument,
	http.StatusUnauthorized:          errdefs.ErrUnauthenticated,
	http.StatusForbidden:             errdefs.ErrPermissionDenied,
	http.StatusNotFound:              errdefs.ErrNotFound,
	http.StatusConflict:              errdefs.ErrConflict,
	http.StatusRequestEntityTooLarge: errdefs.ErrInvalidArgument,
	http.StatusUnprocessableEntity:   errdefs.ErrInvalidArgument,
	http.StatusTooManyRequests:       errdefs.ErrResourceExhausted,
	http.StatusInsufficientStorage:   errdefs.ErrResourceExhausted,
	http.StatusNotImplemented:        errdefs.ErrNotImplemented,
	http.StatusBadGateway:            errdefs.ErrNotFound, // the data plane's word for "no such sandbox"
	http.StatusServiceUnavailable:    errdefs.ErrUnavailable,
	http.StatusInternalServerError:   errdefs.ErrInternal,
}

// responseError reads the body of a failed response, at most 64 KiB of it.
func responseError(req *http.Request, resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := &Error{Op: req.Method + " " + req.URL.Path, Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	var body struct {
		Message    string `json:"message"`
		ErrorCode  string `json:"errorCode"`
		ErrorCode2 string `json:"error_code"`
		Field      string `json:"field"`
		Limit      string `json:"limit"`
		RequestID  string `json:"requestID"`
	}
	if json.Unmarshal(data, &body) == nil && body.Message != "" {
		e.Message, e.Field, e.Limit = body.Message, body.Field, body.Limit
		e.Code = body.ErrorCode + body.ErrorCode2
		if body.RequestID != "" {
			e.RequestID = body.RequestID
		}
		return e
	}
	e.Message = fmt.Sprintf("the server answered %s", resp.Status)
	if text := strings.TrimSpace(string(data)); text != "" && len(text) < 300 {
		e.Message += ": " + text
	}
	return e
}

// rpcStatus gives the HTTP status of a Connect code.
var rpcStatus = map[connect.Code]int{
	connect.CodeInvalidArgument: 400, connect.CodeFailedPrecondition: 400, connect.CodeOutOfRange: 400,
	connect.CodeUnauthenticated: 401, connect.CodePermissionDenied: 403, connect.CodeNotFound: 404,
	connect.CodeAlreadyExists: 409, connect.CodeAborted: 409, connect.CodeResourceExhausted: 429,
	connect.CodeCanceled: 499, connect.CodeUnknown: 500, connect.CodeInternal: 500, connect.CodeDataLoss: 500,
	connect.CodeUnimplemented: 501, connect.CodeUnavailable: 503, connect.CodeDeadlineExceeded: 504,
}

// rpcError turns an error of the agent protocol into an *Error.
func rpcError(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return &Error{Op: op, Code: "unreachable", Message: err.Error(), cause: err}
	}
	return &Error{Op: op, Status: rpcStatus[ce.Code()], Code: ce.Code().String(), Message: ce.Message(), cause: err}
}
