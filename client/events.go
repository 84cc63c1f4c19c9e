package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
)

const eventStream = "text/event-stream"

// maxRow bounds one event of a log, maxEvent one of what can be large.
const (
	maxRow   = 1 << 20
	maxEvent = 16 << 20
)

// readEvents calls each for every server-sent event until it returns false or an
// error, or the connection ends. It reports whether each ended it. op names the
// call in errors; no event may be longer than most bytes.
func readEvents(ctx context.Context, body io.Reader, op string, most int, each func(event string, data []byte) (more bool, err error)) (done bool, err error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), most)
	event := ""
	for lines.Scan() {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			event = string(value)
		case "data":
			if more, err := each(event, value); err != nil || !more {
				return true, err
			}
		case "":
			event = ""
		}
	}
	if ctx.Err() != nil {
		return false, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if err := lines.Err(); err != nil {
		return false, &Error{Op: op, Code: "unreachable", Message: "the stream broke: " + err.Error(), cause: err}
	}
	return false, nil
}

// cut is the error of a stream that ended before its last event.
func cut(op string) error {
	return &Error{Op: op, Code: "unreachable", Message: "the stream ended before its time: the server may have stopped"}
}

// problem is an error of the server inside an answer.
type problem struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	ErrorCode string `json:"errorCode"`
	Field     string `json:"field"`
	Limit     string `json:"limit"`
	RequestID string `json:"requestID"`
}

// of is the *Error of a problem, nil of none.
func (p *problem) of(op string) *Error {
	if p == nil {
		return nil
	}
	return &Error{
		Op: op, Status: p.Code, Code: p.ErrorCode, Message: p.Message, Field: p.Field, Limit: p.Limit, RequestID: p.RequestID,
	}
}

// unmarshal decodes an event of a stream.
func unmarshal(op string, data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return &Error{Op: op, Message: "unreadable event in the stream", cause: err}
	}
	return nil
}
