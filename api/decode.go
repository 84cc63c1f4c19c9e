package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
)

// DecodeError turns what the generated code says of a request that it could not
// read into an error that names the place. Every text begins with "validation
// error".
func DecodeError(err error) error {
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		e := apierr.New(apierr.ErrTooLarge, "validation error: request body is larger than %d MiB", tooBig.Limit>>20)
		e.Limit, e.Code = "body", "body_too_large"
		return e
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body is not valid JSON: it goes wrong at byte %d", syntax.Offset).WithCause(err)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := cmp.Or(wrong.Field, "body")
		e := apierr.New(errdefs.ErrInvalidArgument, "validation error: %s: must be %s, is %s (byte %d)", field, plain(wrong.Type), article(wrong.Value), wrong.Offset)
		e.Field = field
		return e
	}
	if errors.Is(err, io.EOF) {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body is empty")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body ends inside a JSON value")
	}
	return apierr.New(errdefs.ErrInvalidArgument, "validation error: request body cannot be read").WithCause(fmt.Errorf("read request: %w", err))
}

// ParameterError is DecodeError for a member of the query: r cannot be served
// because of what err says of it.
func ParameterError(r *http.Request, name string, err error) error {
	given := r.URL.Query()[name]
	what := "is not a value that it can have"
	switch number, ok := errors.AsType[*strconv.NumError](err); {
	case ok && number.Func == "ParseBool":
		what = fmt.Sprintf("must be true or false, is %q", Clip(number.Num))
	case ok && errors.Is(number.Err, strconv.ErrRange):
		what = "is too large a number"
	case ok:
		what = fmt.Sprintf("must be a whole number, is %q", Clip(number.Num))
	case len(given) > 1:
		what = fmt.Sprintf("is given %d times", len(given))
	case len(given) == 1:
		if _, perr := strconv.ParseInt(given[0], 10, 64); perr == nil {
			what = "is too large a number"
		}
	}
	e := apierr.New(errdefs.ErrInvalidArgument, "validation error: %s: %s", name, what).WithCause(err)
	e.Field = name
	return e
}

// Clip bounds text of a request that an error repeats.
func Clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// MaskRequestHost checks the member network.maskRequestHost: empty, or
// host[:port] where ${PORT} stands for the port.
func MaskRequestHost(mask string) error {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/\@?#"<>`, r) }
	if host := strings.ReplaceAll(mask, "${PORT}", "80"); len(host) > 255 || strings.ContainsFunc(host, bad) {
		return apierr.Field("network.maskRequestHost", "%q is not host[:port]", Clip(mask))
	}
	return nil
}

// article puts "a" or "an" before the name that encoding/json has for a value;
// of a number it gives the digits.
func article(value string) string {
	if digits, ok := strings.CutPrefix(value, "number "); ok {
		return Clip(digits)
	}
	switch value {
	case "array", "object":
		return "an " + value
	}
	return "a " + value
}

// plain names what JSON must hold for a Go type.
func plain(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of at most %d", int64(1)<<(t.Bits()-1)-1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number of 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map:
		return "a map of strings"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	default:
		return "an object"
	}
}
