package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/specutils"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/caisson-dev/caisson/engine/bundle"
	"github.com/caisson-dev/caisson/engine/wire"
)

// call makes one control call. gVisor's client knows no deadline: when ctx
// ends, call returns and the reply is dropped when it comes, at the latest with
// the end of the sandbox. result must not be used after an error.
func call(ctx context.Context, b *box, method string, arg, result any) error {
	done := make(chan error, 1)
	go func() { done <- callNow(b.info.ID, method, arg, result) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func callNow(id, method string, arg, result any) error {
	c, err := client.ConnectTo(bundle.ControlSocket(id))
	if err != nil {
		return &wire.Error{Code: wire.CodeUnavailable, Message: "connect to sandbox: " + err.Error()}
	}
	defer c.Close()
	return c.Call(method, arg, result)
}

// links is the network that a sandbox gets: one interface over nic, loopback,
// and a default route to the gateway.
func links(nic *os.File) *boot.CreateLinksAndRoutesArgs {
	subnet := func(addr string, bits int) net.IPNet {
		mask := net.CIDRMask(bits, 32)
		return net.IPNet{IP: net.ParseIP(addr).To4().Mask(mask), Mask: mask}
	}
	return &boot.CreateLinksAndRoutesArgs{
		FilePayload:   urpc.FilePayload{Files: []*os.File{nic}},
		LoopbackLinks: []boot.LoopbackLink{boot.DefaultLoopbackLink},
		FDBasedLinks: []boot.FDBasedLink{{
			Name: "eth0", MTU: wire.MTU, NumChannels: 1, InterfaceIndex: 2,
			Addresses:         []boot.IPWithPrefix{{Address: net.ParseIP(wire.GuestAddr).To4(), PrefixLen: wire.PrefixLen}},
			Routes:            []boot.Route{{Destination: subnet(wire.GuestAddr, wire.PrefixLen)}},
			RXChecksumOffload: true, TXChecksumOffload: true, QDisc: config.QDiscNone,
		}},
		Defaultv4Gateway: boot.DefaultRoute{
			Route: boot.Route{Destination: subnet("0.0.0.0", 0), Gateway: net.ParseIP(wire.GatewayAddr).To4()},
			Name:  "eth0",
		},
	}
}

// launch connects the network and then lets the guest run, by start or restore.
// The network comes first: afterwards the sentry's seccomp filter forbids it.
// If it fails, the box is killed: a sentry that began and failed cannot begin
// again.
func (b *box) launch(ctx context.Context, method string, arg any) error {
	b.mu.Lock()
	nic := b.nicPeer
	b.nicPeer = nil
	b.mu.Unlock()
	if nic == nil {
		return &wire.Error{Code: wire.CodePrecondition, Message: "the box has been started before"}
	}
	err := call(ctx, b, boot.ContMgrCreateLinksAndRoutes, links(nic), nil)
	// Only after the call has ended; a call that timed out still uses the file,
	// and its finalizer closes it.
	if err == nil {
		_ = nic.Close()
		err = call(ctx, b, method, arg, nil)
	}
	if err != nil {
		b.kill(wire.ReasonCrashed, "start failed: "+err.Error())
		return fmt.Errorf("start box: %w", err)
	}
	b.mu.Lock()
	b.info.State = wire.StateRunning
	b.mu.Unlock()
	return b.save()
}

func (b *box) start(ctx context.Context) error {
	id := b.info.ID
	return b.launch(ctx, boot.ContMgrRootContainerStart, &id)
}

func (b *box) restore(ctx context.Context, files []*os.File) error {
	if len(files) != 3 {
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("restore takes 3 files, got %d", len(files))}
	}
	b.mu.Lock()
	b.restored = true
	b.mu.Unlock()
	return b.launch(ctx, boot.ContMgrRestore, &boot.RestoreOpts{
		FilePayload: urpc.FilePayload{Files: files}, HavePagesFile: true, Background: true,
	})
}

// checkpoint saves processes, memory and the writable layer. Pages are not
// compressed: restore would pay for it each time.
func (b *box) checkpoint(ctx context.Context, files []*os.File, kill bool) error {
	if len(files) != 3 {
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("checkpoint takes 3 files, got %d", len(files))}
	}
	if kill {
		b.mu.Lock()
		if b.reason == "" {
			b.reason, b.detail = wire.ReasonDestroyed, "saved and ended"
		}
		b.mu.Unlock()
	}
	err := call(ctx, b, boot.ContMgrCheckpoint, &control.SaveOpts{
		Metadata:                       statefile.CompressionLevelNone.ToMetadata(),
		AppMFExcludeCommittedZeroPages: true,
		HavePagesFile:                  true,
		FilePayload:                    urpc.FilePayload{Files: files},
		Resume:                         !kill,
	}, nil)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// saveFiles saves the writable layer alone, for Create.FilesFrom.
func (b *box) saveFiles(ctx context.Context, files []*os.File) error {
	if len(files) != 4 {
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("save takes 4 files, got %d", len(files))}
	}
	err := call(ctx, b, boot.ContMgrFSSave, &boot.FSSaveArgs{FilePayload: urpc.FilePayload{Files: files}, Path: "/"}, nil)
	if err != nil {
		return fmt.Errorf("save files: %w", err)
	}
	return nil
}

// exec starts a process inside with the given standard streams.
func (b *box) exec(ctx context.Context, x wire.Exec, files []*os.File) (int32, error) {
	if len(files) != 3 || len(x.Argv) == 0 {
		return 0, &wire.Error{Code: wire.CodeInvalid, Message: "exec takes an argument list and 3 files"}
	}
	// As for the agent's own children: only the agent is exempt from limits.
	names := slices.DeleteFunc(bundle.Capabilities(), func(c string) bool { return c == "CAP_SYS_RESOURCE" })
	set := &specs.LinuxCapabilities{Bounding: names}
	if x.UID == 0 {
		set.Effective, set.Permitted = names, names
	}
	caps, err := specutils.Capabilities(false, set)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	env := x.Env
	if len(env) == 0 {
		env = bundle.Env()
	}
	dir := x.Dir
	if dir == "" {
		dir = "/"
	}
	var pid int32
	err = call(ctx, b, boot.ContMgrExecuteAsync, &control.ExecArgs{
		Argv: x.Argv, Envv: env, WorkingDirectory: dir, ContainerID: b.info.ID,
		KUID: auth.KUID(x.UID), KGID: auth.KGID(x.GID), Capabilities: caps,
		FilePayload: control.NewFilePayload(map[int]*os.File{0: files[0], 1: files[1], 2: files[2]}, nil),
	}, &pid)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	return pid, nil
}

func (b *box) waitPID(ctx context.Context, pid int32) (uint32, error) {
	var ws uint32
	if err := call(ctx, b, boot.ContMgrWaitPID, &boot.WaitPIDArgs{PID: pid, CID: b.info.ID}, &ws); err != nil {
		if b.ended() {
			return 0, errors.Join(&wire.Error{Code: wire.CodeNotFound, Message: "the box has ended"}, err)
		}
		return 0, fmt.Errorf("wait for process: %w", err)
	}
	return ws, nil
}
