package sandbox

import (
	"encoding/json"
	"fmt"

	"github.com/caisson-dev/caisson/template"
)

// guest is what the agent is told at every start beside the sandbox's identity:
// it may hold secrets of the user, so a record has it sealed.
type guest struct {
	Env     map[string]string `json:"env,omitempty"`
	User    string            `json:"user,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
}

const sealGuest = "guest/"

func guestOf(cfg Config, build template.Build, r CreateRequest) guest {
	g := guest{Env: environment(build, r), User: build.User, Workdir: build.Workdir}
	if g.User == "" {
		g.User = cfg.DefaultUser
	}
	return g
}

func (m *Manager) seal(id ID, g guest) (string, error) {
	b, err := json.Marshal(g)
	if err != nil {
		return "", fmt.Errorf("encode environment of sandbox %q: %w", id, err)
	}
	return m.deps.Seed.Seal(sealGuest, string(id), b), nil
}

// unseal reads it back. Records of before there was pausing have none.
func (m *Manager) unseal(sb Sandbox) (guest, error) {
	if sb.Sealed == "" {
		return guest{User: m.cfg.DefaultUser}, nil
	}
	b, err := m.deps.Seed.Unseal(sealGuest, string(sb.ID), sb.Sealed)
	if err != nil {
		return guest{}, fmt.Errorf("environment of sandbox %q: %w", sb.ID, err)
	}
	var g guest
	if err := json.Unmarshal(b, &g); err != nil {
		return guest{}, fmt.Errorf("environment of sandbox %q: %w", sb.ID, err)
	}
	return g, nil
}
