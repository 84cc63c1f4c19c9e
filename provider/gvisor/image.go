package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/internal/embedded"
)

// agentFile returns the path of the image that holds the agent, and the digest
// of the agent. The image is made once per agent.
func (p *Provider) agentFile() (path, digest string, err error) {
	var program []byte
	if p.cfg.AgentPath != "" {
		if program, err = os.ReadFile(p.cfg.AgentPath); err != nil {
			return "", "", fmt.Errorf("read agent: %w", err)
		}
		sum := sha256.Sum256(program)
		digest = hex.EncodeToString(sum[:])
	} else {
		a, err := embedded.Agent()
		if err != nil {
			return "", "", err
		}
		digest = a.Digest
		path = p.agentPath(digest)
		if _, err := os.Stat(path); err == nil {
			return path, digest, nil
		}
		if program, err = a.Bytes(); err != nil {
			return "", "", err
		}
	}
	path = p.agentPath(digest)
	if _, err := os.Stat(path); err == nil {
		return path, digest, nil
	}
	if err := writeAgentImage(path, program); err != nil {
		return "", "", fmt.Errorf("write agent image: %w", err)
	}
	return path, digest, nil
}

func (p *Provider) agentPath(digest string) string {
	return filepath.Join(p.programs(), "agent-"+digest[:min(len(digest), agentDigits)]+".erofs")
}

func writeAgentImage(path string, program []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "agent-*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has been renamed
	_, err = erofs.Build(f, []erofs.File{{Path: filepath.Base(wire.AgentPath), Mode: 0o755, Data: program}})
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
