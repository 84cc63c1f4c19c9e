package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

const (
	interpreterPort = 49999
	// maxCodeLine bounds one event of the code interpreter.
	maxCodeLine = 96 << 20
)

// Code is a piece of code for the code interpreter of a sandbox.
type Code struct {
	Text string
	// Language is python, javascript, typescript, r, java or bash; empty is
	// python. Which of them there are depends on the template.
	Language string
	// Env holds for this run.
	Env map[string]string
}

// CodeEvent is one thing that came of a run of code. Members that do not belong
// to its Type are empty.
type CodeEvent struct {
	// Type is stdout, stderr, result or error; others may come and can be
	// ignored.
	Type string `json:"type"`
	// Text is output, or a result as plain text.
	Text string `json:"text"`
	// Main tells the value of the code from what it displayed.
	Main bool `json:"is_main_result"`
	// The representations of a result: PNG, JPEG and PDF as base64.
	HTML       string          `json:"html"`
	Markdown   string          `json:"markdown"`
	SVG        string          `json:"svg"`
	PNG        string          `json:"png"`
	JPEG       string          `json:"jpeg"`
	PDF        string          `json:"pdf"`
	LaTeX      string          `json:"latex"`
	JavaScript string          `json:"javascript"`
	JSON       json.RawMessage `json:"json"`
	Data       json.RawMessage `json:"data"`
	Chart      json.RawMessage `json:"chart"`
	// Extra has the other representations by MIME type.
	Extra map[string]json.RawMessage `json:"extra"`
	// Name, Value and Traceback describe an error of the code.
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
}

// CodeReady reports nil when the sandbox has a code interpreter that answers.
func (a *Agent) CodeReady(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.c.base.String()+"/health", nil)
	if err != nil {
		return err
	}
	a.route(req, interpreterPort)
	resp, err := a.c.roundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// RunCode runs code in the interpreter's default context of its language, whose
// state later runs share, and calls emit for each event until the code has
// ended. An error of the code is an event. When ctx ends the code is
// interrupted. What emit returns ends the run too.
func (a *Agent) RunCode(ctx context.Context, code Code, emit func(CodeEvent) error) error {
	body, err := json.Marshal(map[string]any{"code": code.Text, "language": code.Language, "env_vars": code.Env})
	if err != nil {
		return fmt.Errorf("run code: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.c.base.String()+"/execute", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("run code: %w", err)
	}
	a.route(req, interpreterPort)
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.c.roundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxCodeLine)
	for lines.Scan() {
		var e CodeEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("run code: event: %w", err)
		}
		if e.Type == "end_of_execution" {
			return nil
		}
		if err := emit(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return transportError(req, errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}
