package sentry

import (
	"errors"
	"runtime"
	"runtime/debug"

	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fd"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/seccheck"
	pb "gvisor.dev/gvisor/pkg/sentry/seccheck/points/points_go_proto"
)

// A box that was booted before anybody knew its name has that of its
// specification, and gVisor gives a restored kernel the specification's name,
// too. Nobody inside may change it: that takes CAP_SYS_ADMIN, which not even the
// agent has. So the engine asks for the name through gVisor's own interface for
// programs that watch a sandbox: a sink that sees the first uname(2) sets it
// before the call is answered, and takes itself away.
const (
	hostnameSink  = "caisson-hostname"
	hostnameField = "hostname"
)

// gcUsual is how much garbage a sentry collects, in percent of what it keeps,
// and gcWhileStarting the same from its claim until the agent is told who it is.
const (
	gcUsual         = 100
	gcWhileStarting = 1000
)

// Hostname is the trace session that gives a created box its name before the
// name is asked for. It is made before start or restore.
func Hostname(name string) seccheck.SessionConfig {
	return seccheck.SessionConfig{
		Name:   seccheck.DefaultSessionName, // gVisor knows no other
		Points: []seccheck.PointConfig{{Name: unamePoint()}},
		Sinks:  []seccheck.SinkConfig{{Name: hostnameSink, Config: map[string]any{hostnameField: name}}},
	}
}

// unamePoint is the name of the entry into uname(2).
func unamePoint() string {
	if runtime.GOARCH == "arm64" {
		return "syscall/sysno/160/enter"
	}
	return "syscall/sysno/63/enter"
}

// registerHostname makes the sink known to this sandbox process.
func registerHostname() {
	seccheck.RegisterSink(seccheck.SinkDesc{Name: hostnameSink, New: newNamer})
}

// namer is the sink.
type namer struct {
	seccheck.SinkDefaults
	name string
}

var _ seccheck.Sink = (*namer)(nil)

func newNamer(config map[string]any, _ *fd.FD) (seccheck.Sink, error) {
	name, ok := config[hostnameField].(string)
	if !ok {
		return nil, errors.New("no hostname")
	}
	// What happens next, decoding a saved kernel, makes hardly any garbage.
	debug.SetGCPercent(gcWhileStarting)
	return &namer{name: name}, nil
}

// Name implements seccheck.Sink.
func (*namer) Name() string { return hostnameSink }

// RawSyscall implements seccheck.Sink. The name counts as the specification's,
// so a copy of this box gets one of its own in turn.
func (n *namer) RawSyscall(ctx context.Context, _ seccheck.FieldSet, _ *pb.Syscall) error {
	k := kernel.KernelFromContext(ctx)
	if k == nil {
		return nil
	}
	k.RootUTSNamespace().RestoreSpecValues(n.name, "")
	// Not here: this is called from among the sinks. One that comes too late
	// finds nothing, or no other session.
	go func() {
		debug.SetGCPercent(gcUsual)
		_ = seccheck.Delete(seccheck.DefaultSessionName)
	}()
	return nil
}
