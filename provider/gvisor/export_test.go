package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
)

// BoxCgroups is the pattern of the groups of an engine's boxes.
func BoxCgroups(dataDir, controller string) string {
	sum := sha256.Sum256([]byte(filepath.Join(dataDir, "engine")))
	return filepath.Join("/sys/fs/cgroup", controller, "caisson-"+hex.EncodeToString(sum[:4]), "*", "cgroup.procs")
}

// EnginePID is the process that runs the boxes.
func (p *Provider) EnginePID(ctx context.Context) (int, error) {
	c, err := p.engine(ctx)
	if err != nil {
		return 0, err
	}
	return c.Hello.PID, nil
}
