package server

import (
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/caisson-dev/caisson/template/transfer"
)

// newBuilds is the queue of template builds; executor may be nil, and then it
// starts none.
func (n *node) newBuilds(executor template.Executor) (*queue.Queue, error) {
	cfg := n.cfg.Template
	defaults, maxima := resources(n.cfg.Limits)
	return queue.New(queue.Config{
		Limits:   queue.Limits{PerTeam: cfg.BuildsPerTeam, Total: cfg.BuildQueue},
		Parallel: cfg.Parallel, Timeout: n.cfg.Build.Timeout, Defaults: defaults, Maxima: maxima,
	}, queue.Deps{
		Store: n.home.store, Records: n.home.store, Catalog: n.home.catalog, Files: n.home.uploads, Vault: n.home.vault,
		Executor: executor, Seed: n.home.seed, Log: n.log,
	})
}

// newTransfers is the export and import of templates.
func (n *node) newTransfers() (*transfer.Transfers, error) {
	h := n.home
	return transfer.New(transfer.Deps{
		Catalog: h.catalog, Builds: n.builds, Spool: h.uploads, Unpacker: n.puller, Images: h.images, Vault: h.vault, Names: h.store, Audit: h.store,
		Fits: n.prov.Fits, Seed: h.seed, MaxBytes: int64(n.cfg.Images.MaxMiB) << 20, Log: n.log,
	})
}
