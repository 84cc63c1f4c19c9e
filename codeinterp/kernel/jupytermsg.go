package kernel

import (
	"encoding/json"
	"strings"
	"time"
)

func status(body json.RawMessage) string {
	var s struct {
		State string `json:"execution_state"`
	}
	_ = json.Unmarshal(body, &s)
	return s.State
}

// event makes an event of a message of the iopub socket; false for one that
// says nothing to the user.
func event(m message) (Event, bool) {
	e := Event{At: time.Now()}
	switch m.kind {
	case "execute_input":
		var in struct {
			Count int `json:"execution_count"`
		}
		if json.Unmarshal(m.body, &in) != nil {
			return e, false
		}
		e.Kind, e.Count = Count, in.Count
	case "stream":
		var s struct{ Name, Text string }
		if json.Unmarshal(m.body, &s) != nil || s.Text == "" {
			return e, false
		}
		e.Kind, e.Text = Stdout, s.Text
		if s.Name == "stderr" {
			e.Kind = Stderr
		}
	case "display_data", "execute_result":
		var d struct {
			Data map[string]json.RawMessage `json:"data"`
		}
		if json.Unmarshal(m.body, &d) != nil {
			return e, false
		}
		e.Kind, e.Data, e.Main = Result, d.Data, m.kind == "execute_result"
	case "error":
		var x struct {
			Name      string   `json:"ename"`
			Value     string   `json:"evalue"`
			Traceback []string `json:"traceback"`
		}
		if json.Unmarshal(m.body, &x) != nil {
			return e, false
		}
		e.Kind, e.Name, e.Value, e.Traceback = Error, x.Name, x.Value, strings.Join(x.Traceback, "\n")
	default:
		return e, false
	}
	return e, true
}
