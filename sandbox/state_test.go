package sandbox_test

import (
	"testing"

	"github.com/caisson-dev/caisson/sandbox"
)

func TestStateTable(t *testing.T) {
	t.Parallel()
	all := append(sandbox.Unfinished(), sandbox.Killed, sandbox.Failed)
	allowed := map[sandbox.State]string{
		sandbox.Pending:  "pending running killing killed failed",
		sandbox.Running:  "running pausing killing killed",
		sandbox.Pausing:  "running pausing paused killing killed failed",
		sandbox.Paused:   "paused resuming killing killed",
		sandbox.Resuming: "running paused resuming killing killed failed",
		sandbox.Killing:  "killing killed",
		sandbox.Killed:   "",
		sandbox.Failed:   "",
		"nonsense":       "",
	}
	for from, want := range allowed {
		got := ""
		if from == "nonsense" {
			if from.CanBecome(sandbox.Running) {
				t.Error("an unknown state can become running")
			}
			continue
		}
		for _, to := range all {
			if from.CanBecome(to) {
				if got != "" {
					got += " "
				}
				got += string(to)
			}
		}
		if got != want {
			t.Errorf("%s can become %q, want %q", from, got, want)
		}
		if live := len(want) > 0; from.Ended() == live {
			t.Errorf("%s: Ended() = %v", from, from.Ended())
		}
	}
}
