package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
)

// UpdateNetwork replaces the egress part of the network configuration; the rest
// of n is ignored. New flows are judged by it when the call returns, flows that
// it denies are cut. On an error the old one stands.
func (m *Manager) UpdateNetwork(ctx context.Context, who identity.Principal, id ID, n Network) error {
	policy, err := m.deps.Policy(n)
	if err != nil {
		return err
	}
	e, err := m.findLive(ctx, who, id)
	if err != nil {
		return err
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	// The record goes first, so that a restart never widens what was narrowed.
	var old Sandbox
	_, err = m.writeNetwork(ctx, who, id, func(s *Sandbox) {
		old = *s
		n.PrivateTraffic, n.PrivatePorts, n.MaskRequestHost = s.Network.PrivateTraffic, s.Network.PrivatePorts, s.Network.MaskRequestHost
		s.Network, s.Egress = n, policy
	})
	if err != nil {
		return err
	}
	if err := m.deps.Guard.Update(ctx, string(id), policy); err != nil {
		return errors.Join(fmt.Errorf("update egress of sandbox %q: %w", id, err), m.restoreNetwork(ctx, who, old))
	}
	return nil
}

// restoreNetwork puts the old policy back where the new one could not be had.
func (m *Manager) restoreNetwork(ctx context.Context, who identity.Principal, old Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
	defer cancel()
	_, err := m.writeNetwork(ctx, who, old.ID, func(s *Sandbox) { s.Network, s.Egress = old.Network, old.Egress })
	if err != nil {
		m.log.ErrorContext(ctx, "old egress policy could not be restored in the record",
			slog.String("sandbox", string(old.ID)), slog.Any("error", err))
	}
	return err
}

func (m *Manager) writeNetwork(ctx context.Context, who identity.Principal, id ID, change func(*Sandbox)) (Sandbox, error) {
	return m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if s.State != Running {
			return audit.Event{}, notFound(id)
		}
		change(s)
		return audit.Event{Type: "sandbox.network_set", Actor: who.KeyID, Fields: policyFields(s.Egress)}, nil
	})
}

func policyFields(p egress.Policy) map[string]string {
	return map[string]string{"default": string(p.Default), "rules": fmt.Sprint(len(p.Rules))}
}
