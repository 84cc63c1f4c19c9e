package codeinterp

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// members are the members of a result by MIME type; every other type goes into
// "extra".
func member(mime string) string {
	switch mime {
	case "text/plain":
		return "text"
	case "text/html":
		return "html"
	case "text/markdown":
		return "markdown"
	case "image/svg+xml":
		return "svg"
	case "image/png":
		return "png"
	case "image/jpeg":
		return "jpeg"
	case "application/pdf":
		return "pdf"
	case "text/latex":
		return "latex"
	case "application/json":
		return "json"
	case "application/javascript":
		return "javascript"
	case "e2b/data":
		return "data"
	case "e2b/chart":
		return "chart"
	}
	return ""
}

// resultLine is the line of a display or of a cell's value.
func resultLine(e kernel.Event) map[string]any {
	line := map[string]any{"type": "result", "is_main_result": e.Main}
	extra := map[string]json.RawMessage{}
	for mime, raw := range e.Data {
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			continue
		}
		name := member(mime)
		switch name {
		case "":
			extra[mime] = raw
		case "text":
			line[name] = unquoted(text(raw))
		case "png", "jpeg", "pdf":
			// Encoders break base64 into lines.
			line[name] = strings.Join(strings.Fields(text(raw)), "")
		case "json", "data", "chart":
			line[name] = raw
		default:
			line[name] = text(raw)
		}
	}
	line["extra"] = extra
	return line
}

// text reads a string, or an array of lines as notebooks have it.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var lines []string
	if json.Unmarshal(raw, &lines) == nil {
		return strings.Join(lines, "")
	}
	return string(raw)
}

// unquoted removes one pair of quotes around a string's representation.
func unquoted(s string) string {
	if len(s) >= 2 && (s[0] == '\'' || s[0] == '"') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}
