// Package transfer moves templates between installations: export to the file of
// package archive, and import of one, or of a container image. It joins the
// catalog, the stores of images and memory, and the queue of builds; what an
// archive looks like is package archive's, how its layers become a root
// filesystem package oci's.
//
// Package api/native is the face of it; package server wires it.
package transfer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
	"github.com/caisson-dev/caisson/template/oci"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/caisson-dev/caisson/template/upload"
)

const (
	// perTeam and total bound what is exported and imported at a time: each costs
	// a core.
	perTeam = 2
	total   = 4
	// placeWait is how long an archive that was received waits for a place.
	placeWait = 10 * time.Minute
)

// Catalog finds templates; implemented by template.Catalog.
type Catalog interface {
	Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error)
}

// Builds records what was imported; implemented by queue.Queue.
type Builds interface {
	Import(ctx context.Context, who identity.Principal, i queue.Imported) (template.Template, template.Build, error)
}

// Spool takes archives in; implemented by upload.Files.
type Spool interface {
	Spool(ctx context.Context, team identity.TeamID, r io.Reader, size int64) (*upload.Spooled, error)
}

// Unpacker makes root filesystems; implemented by oci.Puller.
type Unpacker interface {
	Unpack(ctx context.Context, a *archive.Archive, warn func(string)) (oci.Unpacked, error)
}

// Names are those that saved memory has addresses of; implemented by package store.
type Names interface {
	Names(ctx context.Context, id string) (map[string]netip.Addr, error)
	PutName(ctx context.Context, id, name string, addr netip.Addr) error
}

// Deps are what Transfers work with; all are needed.
type Deps struct {
	Catalog  Catalog
	Builds   Builds
	Spool    Spool
	Unpacker Unpacker
	Images   *image.Store
	Vault    *snapshot.Local
	Names    Names
	// Audit is told who exported what; imports are told of as builds.
	Audit interface {
		Record(ctx context.Context, ev audit.Event) error
	}
	// Fits says whether memory can be taken up here.
	Fits func(snapshot.Artifact) error
	Seed identity.Seed
	// MaxBytes bounds an archive that is imported.
	MaxBytes int64
	Log      *slog.Logger
}

// Transfers exports and imports. Safe for concurrent use.
type Transfers struct {
	d Deps

	mu   sync.Mutex // guards busy and left
	busy map[identity.TeamID]int
	// left is closed, and another takes its place, when a place is given back.
	left chan struct{}
}

// New returns Transfers; errdefs.ErrInvalidArgument when something is missing.
func New(d Deps) (*Transfers, error) {
	if d.Catalog == nil || d.Builds == nil || d.Spool == nil || d.Unpacker == nil || d.Images == nil || d.Vault == nil || d.Names == nil ||
		d.Audit == nil || d.Fits == nil || d.Log == nil {
		return nil, fmt.Errorf("transfers need their stores, a queue and a log: %w", errdefs.ErrInvalidArgument)
	}
	return &Transfers{d: d, busy: map[identity.TeamID]int{}, left: make(chan struct{})}, nil
}

// room says whether there is a place for a team's; mu is held.
func (t *Transfers) room(team identity.TeamID) error {
	all := 0
	for _, n := range t.busy {
		all += n
	}
	if t.busy[team] >= perTeam || all >= total {
		return apierr.New(errdefs.ErrResourceExhausted,
			"templates are being exported and imported already: %d at a time for a team, %d for all; try again when they have ended", perTeam, total)
	}
	return nil
}

// full says early that there is no place: before much is sent that would wait for one.
func (t *Transfers) full(team identity.TeamID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.room(team)
}

// enter takes one of the places; leave gives it back.
func (t *Transfers) enter(team identity.TeamID) (leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.room(team); err != nil {
		return nil, err
	}
	t.busy[team]++
	return sync.OnceFunc(func() { t.leave(team) }), nil
}

func (t *Transfers) leave(team identity.TeamID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy[team]--; t.busy[team] == 0 {
		delete(t.busy, team)
	}
	close(t.left)
	t.left = make(chan struct{})
}

// await is enter for what has been received already: it waits for a place, for a while.
func (t *Transfers) await(ctx context.Context, team identity.TeamID) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	for {
		t.mu.Lock()
		left := t.left // before the places are looked at
		t.mu.Unlock()
		leave, err := t.enter(team)
		if err == nil {
			return leave, nil
		}
		select {
		case <-left:
		case <-ctx.Done():
			return nil, err
		}
	}
}
