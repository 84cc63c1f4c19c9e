package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/telemetry"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

// stockEvery is how often a stock template is looked for that was built into the
// data directory while the server ran.
const stockEvery = 15 * time.Second

// system is who begins the builds of this file.
func system(team identity.TeamID) identity.Principal {
	return identity.Principal{Team: team, KeyID: "system"}
}

// saveTemplates has memory saved for templates that have a start command and
// none, or that of an engine which this server cannot take up: those that were
// built from packages, and all of them after an upgrade. Each is a new build,
// which takes the place of the one before when it is ready.
func (n *node) saveTemplates(ctx context.Context) error {
	left := n.renewMemory(ctx)
	tick := time.NewTicker(stockEvery)
	defer tick.Stop()
	for {
		for _, s := range template.StockTemplates() {
			if s.Start != "" {
				n.finishStock(ctx, s)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if left {
			left = n.renewMemory(ctx)
		}
	}
}

// finishHere is for a stock template that was built while no server runs: this
// process does for a moment what one would. With one that runs it does nothing.
func finishHere(ctx context.Context, cfg config.Config, h *home, name string, progress cli.Progress) (err error) {
	s, err := template.StockTemplate(name)
	if err != nil || s.Start == "" {
		return err
	}
	lock, err := h.lock()
	if errdefs.IsFailedPrecondition(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	log := slog.New(slog.DiscardHandler)
	n := &node{cfg: cfg, log: log, home: h, opts: cli.ServeOptions{Log: log, Metrics: telemetry.NewMetrics(""), Progress: progress}}
	if err := n.build(ctx, progress); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, n.prov.Close(), n.gateway.Close(context.WithoutCancel(ctx)))
	}()
	if err := n.prov.Probe(ctx); err != nil {
		return err
	}
	t, _, err := h.catalog.Resolve(ctx, identity.DefaultTeam, name)
	if err != nil {
		return err
	}
	work, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- ended(n.builds.RunOnly(work, t.ID)) }()
	defer func() { stop(); err = errors.Join(err, <-done) }()
	n.finishStock(ctx, s)
	n.awaitPrepared(ctx)
	t, b, err := h.catalog.Resolve(ctx, identity.DefaultTeam, name)
	if err != nil || b.Artifact != nil {
		return err
	}
	if builds, err := h.store.ListBuilds(ctx, t.ID); err == nil && builds[0].Reason != "" {
		return errors.New(builds[0].Reason)
	}
	return errors.New("it takes too long")
}

// finishStock builds a stock template's memory unless that was done or tried.
func (n *node) finishStock(ctx context.Context, s template.Stock) {
	t, b, err := n.home.catalog.Resolve(ctx, identity.DefaultTeam, s.Name)
	if errdefs.IsNotFound(err) || ctx.Err() != nil {
		return
	}
	if err == nil && unsaved(t, b) {
		err = n.rebuild(ctx, t, b, []string{template.DefaultTag}, queue.Recipe{Template: s.Name, Start: s.Start, Ready: s.Ready})
	}
	if err != nil && !errors.Is(err, errBusy) {
		n.log.Warn("memory of a stock template cannot be saved", slog.String("template", s.Name), slog.Any("error", err))
	}
}

// unsaved says whether a template with a stock template's name is one, and has no
// memory: a team may give its own the name, and what that starts is its affair.
func unsaved(t template.Template, b template.Build) bool {
	return b.Artifact == nil && t.Team == identity.DefaultTeam && !b.FromRecipe()
}

// renewMemory begins builds of templates whose memory does not fit this engine;
// left says that there was no room for all.
func (n *node) renewMemory(ctx context.Context) (left bool) {
	all, err := n.home.store.ListTemplates(ctx, "")
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn("templates cannot be listed", slog.Any("error", err))
		}
		return true
	}
	for _, t := range all {
		builds, err := n.taggedBuilds(ctx, t)
		if err != nil {
			left = true
			continue
		}
		for _, x := range builds {
			b, err := n.home.catalog.Build(ctx, x.id)
			if err != nil || b.Artifact == nil || b.FromSandbox() || n.prov.Fits(*b.Artifact) == nil {
				continue
			}
			err = n.rebuild(ctx, t, b, x.tags, queue.Recipe{Template: string(t.ID) + ":" + x.tags[0], Start: b.Start, Ready: b.Ready})
			switch {
			case errors.Is(err, errBusy):
				left = true
			case err != nil:
				n.log.Warn("memory of a template cannot be renewed", slog.String("template", string(t.ID)),
					slog.String("tag", x.tags[0]), slog.Any("error", err))
			}
		}
	}
	return left
}

// taggedBuild is a build with all tags that name it.
type taggedBuild struct {
	id   template.BuildID
	tags []string
}

// taggedBuilds returns the builds that sandboxes can be created from.
func (n *node) taggedBuilds(ctx context.Context, t template.Template) ([]taggedBuild, error) {
	tags, err := n.home.store.ListTags(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	var out []taggedBuild
	for _, tag := range tags {
		i := slices.IndexFunc(out, func(x taggedBuild) bool { return x.id == tag.Build })
		if i < 0 {
			i = len(out)
			out = append(out, taggedBuild{id: tag.Build})
		}
		out[i].tags = append(out[i].tags, tag.Name)
	}
	return out, nil
}

// errBusy says that a team, or the server, has as many builds under way as it may, or
// one that would take the place of this.
var errBusy = errors.New("too many builds are under way")

// room returns errBusy when another build could not be started: one that was
// registered and not started would look like one that is coming.
func (n *node) room(ctx context.Context, team identity.TeamID) error {
	pending, err := n.home.store.PendingBuilds(ctx)
	if err != nil {
		return err
	}
	own := 0
	for _, p := range pending {
		if p.Team == team {
			own++
		}
	}
	if c := n.cfg.Template; own >= c.BuildsPerTeam || len(pending) >= c.BuildQueue {
		return errBusy
	}
	return nil
}

// rebuild queues a build of a template on one of its own, b, with its resources and
// its tags, unless the server has begun one already: under way, or failed since.
// errBusy when that must wait.
func (n *node) rebuild(ctx context.Context, t template.Template, b template.Build, tags []string, r queue.Recipe) error {
	builds, err := n.home.store.ListBuilds(ctx, t.ID)
	if err != nil {
		return err
	}
	for _, x := range builds {
		// One that is ready has not these tags: b has them.
		if x.ID == b.ID || x.Status == template.Ready || !slices.ContainsFunc(x.Tags, func(tag string) bool { return slices.Contains(tags, tag) }) {
			continue
		}
		if of, ok := x.Renews(); ok && of == b.ID {
			return nil // it waits, is under way, or has failed for a reason that it gives
		}
		if x.Status != template.Failed {
			return errBusy // what the team builds comes first, and this only when it fails
		}
	}
	if err := n.room(ctx, t.Team); err != nil {
		return err
	}
	who := system(t.Team)
	ask := queue.Request{Name: string(t.ID), Tags: tags, Renews: &b}
	if b.Resources.CPUs > 0 {
		ask.CPUs = new(int32(b.Resources.CPUs))
	}
	if b.Resources.MemoryMiB > 0 {
		ask.MemoryMiB = new(b.Resources.MemoryMiB)
	}
	if b.Resources.DiskMiB > 0 {
		ask.FreeDiskMiB = new(b.Resources.DiskMiB)
	}
	_, made, err := n.builds.Register(ctx, who, ask)
	if err != nil {
		return err
	}
	if err := n.builds.Start(ctx, who, string(t.ID), made.ID, r); err != nil {
		// Else it waits for a day, and the template with it.
		return errors.Join(err, n.builds.Cancel(context.WithoutCancel(ctx), who, string(t.ID), made.ID))
	}
	n.log.Info("memory of a template is being saved", slog.String("template", t.Names[0]), slog.String("build", string(made.ID)))
	return nil
}

// prepareLimit is how long a build waits for its memory; what is not saved by then
// is the next server's.
const prepareLimit = time.Minute

// awaitPrepared waits until stock templates can be created from: until then
// creates of them are refused.
func (n *node) awaitPrepared(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	shown := ""
	for names := n.preparing(ctx); len(names) > 0; names = n.preparing(ctx) {
		if now := strings.Join(names, ", "); now != shown {
			n.opts.Progress("save the memory of "+now, "")
			shown = now
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// preparing returns the names of stock templates whose memory is still to come.
func (n *node) preparing(ctx context.Context) (names []string) {
	for _, s := range template.StockTemplates() {
		if s.Start == "" {
			continue
		}
		t, b, err := n.home.catalog.Resolve(ctx, identity.DefaultTeam, s.Name)
		if err != nil || !unsaved(t, b) {
			continue
		}
		builds, err := n.home.store.ListBuilds(ctx, t.ID)
		if err == nil && (len(builds) == 0 || builds[0].Status != template.Failed) { // the newest
			names = append(names, s.Name)
		}
	}
	return names
}
