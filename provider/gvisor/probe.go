package gvisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
)

// probePrefix begins the ids of trial boxes; sandbox ids are never so long.
const probePrefix = "caissonprobe"

// Probe implements provider.Provider: it boots a trial box, once; after that it
// asks whether the engine answers. The trial has a hard time limit, since a
// platform that does not work on a host may hang instead of failing.
func (p *Provider) Probe(ctx context.Context) error {
	p.probing.Lock()
	defer p.probing.Unlock()
	p.mu.Lock()
	probed := p.probed
	p.mu.Unlock()
	if probed {
		_, err := p.list(ctx)
		return err
	}
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		errors.New("a trial sandbox did not start within 5 s; gVisor's systrap platform may not work on this host"))
	defer cancel()
	if err := p.sweepTrials(ctx); err != nil {
		return err
	}
	b, err := p.create(ctx, provider.Spec{
		SandboxID: probePrefix + strings.ToLower(rand.Text()),
		Hostname:  "probe",
		Rootfs:    image.Rootfs{Path: p.agentImage, Digest: "probe"},
		Egress:    denyAll{},
	}, launch{})
	if err != nil {
		return fmt.Errorf("trial sandbox: %w", err)
	}
	clean, done := cleanupContext(ctx)
	defer done()
	if err := b.Destroy(clean); err != nil {
		return fmt.Errorf("trial sandbox: %w", err)
	}
	p.mu.Lock()
	p.probed = true
	p.mu.Unlock()
	return nil
}

// sweepTrials ends trial boxes that a killed server left; List does not show
// them, so that nobody takes the current one for an orphan.
func (p *Provider) sweepTrials(ctx context.Context) error {
	boxes, err := p.list(ctx)
	if err != nil {
		return err
	}
	for _, b := range boxes {
		if strings.HasPrefix(b.ID, probePrefix) {
			if err := p.call(ctx, wire.OpKill, wire.ByID{ID: b.ID}, nil); err != nil {
				return fmt.Errorf("end an old trial sandbox: %w", err)
			}
		}
	}
	return nil
}

// denyAll lets nothing out.
type denyAll struct{}

func (denyAll) TCP(_ context.Context, f egress.Flow) { f.Reject() }
func (denyAll) DNS(context.Context, []byte) []byte   { return nil }
func (denyAll) DroppedUDP(netip.AddrPort)            {}
