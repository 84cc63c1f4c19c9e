package gvisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider/gvisor/engine"
)

const (
	// sweepTimeout bounds looking for programs that nothing uses.
	sweepTimeout = 10 * time.Second
	// halfWritten is after how long a file that was never finished is taken for
	// one whose writer died.
	halfWritten = 24 * time.Hour
)

// What this package and package embedded write into the directory of programs.
// Files of other names are not ours to remove.
var (
	programName = regexp.MustCompile(`^(caisson-engine-[0-9a-f]{16}|caisson-agent-[0-9a-f]{16}|agent-[0-9a-f]{16}\.erofs)$`)
	unfinished  = regexp.MustCompile(`^(caisson-engine|caisson-agent|agent)-[0-9]+\.new$`)
	imageName   = regexp.MustCompile(`^agent-([0-9a-f]{16})\.erofs$`)
)

func (p *Provider) programs() string { return filepath.Join(p.cfg.DataDir, "programs") }

// sweepPrograms removes engines and agents of other builds, which an upgrade
// leaves behind. What a running engine, a box or any process may still refer to
// stays, and so does everything when that cannot be told; a later start looks
// again. c is a connection to the only engine of this directory.
func (p *Provider) sweepPrograms(ctx context.Context, c *engine.Client) {
	ctx, cancel := context.WithTimeoutCause(ctx, sweepTimeout, errors.New("looking for their users took too long"))
	defer cancel()
	unused, err := p.unusedPrograms(ctx, c)
	if err != nil {
		p.log.Info("programs of other builds stay", slog.String("directory", p.programs()), slog.Any("error", err))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(unused)) {
		if err := os.Remove(filepath.Join(p.programs(), name)); err != nil {
			p.log.Warn("remove program of another build", slog.Any("error", err))
			continue
		}
		p.log.Info("program of another build removed", slog.String("file", name), slog.Int64("bytes", unused[name]))
	}
}

// unusedPrograms returns the names and sizes of the files that nothing refers
// to. An error means that nobody knows.
func (p *Provider) unusedPrograms(ctx context.Context, c *engine.Client) (map[string]int64, error) {
	files, err := otherPrograms(p.programs(), time.Now().Add(-halfWritten))
	if err != nil {
		return nil, err
	}
	// An engine of another build serves on until its boxes have ended. No third
	// one runs: the engine's lock admits one to a directory.
	for _, name := range append(p.currentPrograms(), c.Hello.Build) {
		delete(files, name)
	}
	if len(files) == 0 {
		return nil, nil
	}
	var listed wire.ListReply
	if err := c.Call(ctx, wire.OpList, nil, &listed); err != nil {
		return nil, err
	}
	for _, b := range listed.Boxes {
		agent, err := agentOf(b)
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(files, func(name string, _ int64) bool {
			m := imageName.FindStringSubmatch(name)
			return m != nil && strings.HasPrefix(m[1], agent)
		})
	}
	if err := p.dropSaved(ctx, files); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files, dropUsed(ctx, files, p.cfg.DataDir)
}

// dropSaved takes the agents out of files that saved memory goes on with.
func (p *Provider) dropSaved(ctx context.Context, files map[string]int64) error {
	if p.cfg.SavedABIs == nil {
		maps.DeleteFunc(files, func(name string, _ int64) bool { return imageName.MatchString(name) })
		return nil
	}
	abis, err := p.cfg.SavedABIs(ctx)
	if err != nil {
		return fmt.Errorf("list saved memory: %w", err)
	}
	for _, abi := range abis {
		_, agent := splitABI(abi)
		delete(files, filepath.Base(p.agentPath(agent)))
	}
	return nil
}

// otherPrograms lists regular files that have the names of programs, and those
// that were begun before a time and never finished.
func otherPrograms(dir string, before time.Time) (map[string]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is none when all programs come from elsewhere
		return nil, err
	}
	files := map[string]int64{}
	for _, ent := range entries {
		info, err := ent.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed by another start
		}
		if err != nil {
			return nil, err
		}
		begun := unfinished.MatchString(ent.Name()) && info.ModTime().Before(before)
		if info.Mode().IsRegular() && (begun || programName.MatchString(ent.Name())) {
			files[ent.Name()] = info.Size()
		}
	}
	return files, nil
}

// currentPrograms names the files of this build, also the agent itself, which
// only its image is made from.
func (p *Provider) currentPrograms() []string {
	names := []string{filepath.Base(p.options.Binary), filepath.Base(p.agentImage)}
	if m := imageName.FindStringSubmatch(names[1]); m != nil {
		names = append(names, "caisson-agent-"+m[1])
	}
	return names
}

// agentOf returns the beginning of the digest of the agent that a box was made
// with, from the box's record.
func agentOf(b wire.Box) (string, error) {
	var m meta
	if err := json.Unmarshal(b.Meta, &m); err != nil {
		return "", fmt.Errorf("record of box %s: %w", b.ID, err)
	}
	_, agent, ok := strings.Cut(m.ABI, agentMark)
	if !ok || agent == "" {
		return "", fmt.Errorf("record of box %s names no agent", b.ID)
	}
	return agent, nil
}

// dropUsed takes out of files what a process runs, has open or has mapped. Names
// decide, not paths: they hold digests, and a process in another mount namespace
// shows other paths. A process that may not be looked into is passed over, as
// the boxes have been asked for, unless its command line says that it belongs to
// an engine of dataDir: then the error says so.
func dropUsed(ctx context.Context, files map[string]int64, dataDir string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, ent := range entries {
		if _, err := strconv.Atoi(ent.Name()); err != nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		dir := filepath.Join("/proc", ent.Name())
		lookErr := eachFile(dir, func(path string) {
			delete(files, strings.TrimSuffix(filepath.Base(path), " (deleted)"))
		})
		if lookErr == nil {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil && !gone(err) || bytes.Contains(args, []byte(dataDir)) {
			return fmt.Errorf("look into process %s: %w", ent.Name(), lookErr)
		}
	}
	return nil
}

// eachFile calls yield with the path of everything that the process of dir, in
// /proc, has open or has mapped, as far as there is a path. What it runs is
// mapped.
func eachFile(dir string, yield func(path string)) error {
	open, err := os.ReadDir(dir + "/fd")
	if err != nil && !gone(err) {
		return err
	}
	for _, ent := range open {
		path, err := os.Readlink(dir + "/fd/" + ent.Name())
		if err != nil && !gone(err) { // closed meanwhile
			return err
		}
		yield(path)
	}
	f, err := os.Open(dir + "/maps")
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if _, path, ok := strings.Cut(lines.Text(), "/"); ok {
			yield(path)
		}
	}
	if err := lines.Err(); err != nil && !gone(err) {
		return err
	}
	return nil
}

// gone reports whether an error of /proc says that a process, or what was asked
// of it, is not there.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }
