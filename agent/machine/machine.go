// Package machine makes the guest match the identity that it was given:
// hostname, marker files, clock, trust store, randomness. Only a guest's pid 1
// may use it; nothing in it is for the server's own machine.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/control"
)

// clockTolerance is the difference to the host's clock that is left alone.
const clockTolerance = 500 * time.Millisecond

// Machine is the guest below Root, which is "/" except in tests.
type Machine struct {
	Root string
	// Kernel says whether hostname and clock are set too.
	Kernel bool
	Log    *slog.Logger
}

// Apply implements agent.Guest. Marker files must succeed, because programs
// rely on them; what a guest's kernel may refuse is logged and left.
func (m Machine) Apply(_ context.Context, in control.Init) error {
	if err := m.markers(in); err != nil {
		return err
	}
	m.Refresh(in)
	if m.Kernel && in.Hostname != "" {
		m.try("set hostname", setHostname(in.Hostname))
	}
	if in.Hostname != "" {
		m.try("name the host", m.hostname(in.Hostname))
	}
	if in.CABundle != "" {
		m.try("install certificates", m.trust(in.CABundle))
	}
	return nil
}

// Refresh implements agent.Guest.
func (m Machine) Refresh(in control.Init) {
	if m.Kernel {
		m.try("set clock", setClock(in.Now))
		m.try("seed randomness", m.seed(in.Seed))
	}
}

func (m Machine) try(what string, err error) {
	if err != nil {
		m.Log.Warn("guest set-up step skipped", slog.String("step", what), slog.Any("error", err))
	}
}

// markers writes what in-sandbox programs look for to see where they are.
func (m Machine) markers(in control.Init) error {
	dir := filepath.Join(m.Root, "run/e2b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make marker directory: %w", err)
	}
	files := map[string]string{
		filepath.Join(dir, ".E2B_SANDBOX"):     "true",
		filepath.Join(dir, ".E2B_SANDBOX_ID"):  in.SandboxID,
		filepath.Join(dir, ".E2B_TEMPLATE_ID"): in.TemplateID,
		filepath.Join(m.Root, ".e2b"): fmt.Sprintf("ENV_ID=%s\nTEMPLATE_ID=%s\nBUILD_ID=%s\n",
			in.TemplateID, in.TemplateID, in.BuildID),
	}
	for name, content := range files {
		if err := writeFile(name, content); err != nil {
			return fmt.Errorf("write marker: %w", err)
		}
	}
	return nil
}

// setClock follows the host's clock; gVisor's already does.
func setClock(now time.Time) error {
	if now.IsZero() || time.Since(now).Abs() <= clockTolerance {
		return nil
	}
	ts, err := unix.TimeToTimespec(now)
	if err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// setHostname sets the name unless the sandbox came up with it.
func setHostname(name string) error {
	if now, err := os.Hostname(); err == nil && now == name {
		return nil
	}
	return unix.Sethostname([]byte(name))
}

// writeFile is os.WriteFile with three system calls instead of eight: this is
// part of every sandbox's start.
func writeFile(name, content string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	_, err = unix.Write(fd, []byte(content))
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// seed stirs fresh randomness into the guest's pool.
func (m Machine) seed(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(m.Root, "dev/urandom"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(seed)
	return errors.Join(err, f.Close())
}

// hostname makes the name resolve, without which sudo complains.
func (m Machine) hostname(name string) error {
	if err := writeFile(filepath.Join(m.Root, "etc/hostname"), name+"\n"); err != nil {
		return err
	}
	return m.block("etc/hosts", "127.0.1.1 "+name+"\n")
}

// trust appends bundle to the system's trust store.
func (m Machine) trust(bundle string) error {
	if !strings.HasSuffix(bundle, "\n") {
		bundle += "\n"
	}
	return m.block("etc/ssl/certs/ca-certificates.crt", bundle)
}

// BlockBegin and BlockEnd enclose what the agent adds to files of the guest.
const (
	BlockBegin = "# caisson begin\n"
	BlockEnd   = "# caisson end\n"
)

// block replaces our block in a file, or appends it.
func (m Machine) block(name, content string) error {
	path := filepath.Join(m.Root, name)
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return err
	}
	text := string(old)
	if before, rest, ok := strings.Cut(text, BlockBegin); ok {
		if _, after, ok := strings.Cut(rest, BlockEnd); ok {
			text = before + after
		}
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	text += BlockBegin + content + BlockEnd
	if text == string(old) {
		return nil
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
