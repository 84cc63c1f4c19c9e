package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
)

// DecodeError turns what the generated code says of a request that it could not
// read into an error that names the place. Every text begins with "validation
// error".
func DecodeError(err error) error {
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		e := apierr.New(errdefs.ErrInvalidArgument, "validation error: request body is larger than %d bytes", tooBig.Limit)
		e.Limit = "body"
		return e
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body is not JSON: %s at byte %d", syntax.Error(), syntax.Offset)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := wrong.Field
		if field == "" {
			field = "body"
		}
		e := apierr.New(errdefs.ErrInvalidArgument, "validation error: %s: a JSON %s cannot be a %s (byte %d)", field, wrong.Value, plain(wrong.Type.String()), wrong.Offset)
		e.Field = field
		return e
	}
	if errors.Is(err, io.EOF) {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body is empty")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body ends inside a JSON value")
	}
	return apierr.New(errdefs.ErrInvalidArgument, "validation error: %s", strings.TrimPrefix(err.Error(), "can't decode JSON body: ")).WithCause(fmt.Errorf("read request: %w", err))
}

// plain names a Go type in words of JSON.
func plain(goType string) string {
	t := strings.TrimLeft(goType, "*")
	switch {
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
		return "number (" + t + ")"
	case strings.HasPrefix(t, "[]"):
		return "list"
	case strings.HasPrefix(t, "map["):
		return "map of strings"
	case t == "string", t == "bool":
		return t
	}
	return "object"
}
