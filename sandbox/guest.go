package sandbox

import (
	"encoding/json"
	"fmt"

	"github.com/caisson-dev/caisson/template"
)

// guest is what the agent is told at every start beside the sandbox's identity:
// it may hold secrets of the user, so a record has it sealed. PrivatePorts is
// set in snapshots alone, for Network.PrivatePorts of what starts from them.
type guest struct {
	Env     map[string]string `json:"env,omitempty"`
	User    string            `json:"user,omitempty"`
	Workdir string            `json:"workdir,omitempty"`

	PrivatePorts []uint16 `json:"privatePorts,omitempty"`
}

const sealGuest = "guest/"

func guestOf(cfg Config, build template.Build, r CreateRequest) guest {
	g := guest{Env: environment(build, r), User: build.User, Workdir: build.Workdir}
	if g.User == "" {
		g.User = cfg.DefaultUser
	}
	return g
}

func (m *Manager) seal(id ID, g guest) (string, error) { return m.sealFor(string(id), g) }

// sealFor seals for a sandbox or a build.
func (m *Manager) sealFor(id string, g guest) (string, error) {
	b, err := json.Marshal(g)
	if err != nil {
		return "", fmt.Errorf("encode environment of %q: %w", id, err)
	}
	return m.deps.Seed.Seal(sealGuest, id, b), nil
}

// unseal reads it back. Records of before there was pausing have none.
func (m *Manager) unseal(sb Sandbox) (guest, error) {
	if sb.Sealed == "" {
		return guest{User: m.cfg.DefaultUser}, nil
	}
	return m.unsealFor(string(sb.ID), sb.Sealed)
}

func (m *Manager) unsealFor(id, sealed string) (guest, error) {
	b, err := m.deps.Seed.Unseal(sealGuest, id, sealed)
	if err != nil {
		return guest{}, fmt.Errorf("environment of %q: %w", id, err)
	}
	var g guest
	if err := json.Unmarshal(b, &g); err != nil {
		return guest{}, fmt.Errorf("environment of %q: %w", id, err)
	}
	return g, nil
}
