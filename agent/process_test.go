package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/agent/control"
	pb "github.com/caisson-dev/caisson/gen/process"
)

// run is one Start stream.
type run struct {
	stream *connect.ServerStreamForClient[pb.StartResponse]
	pid    uint32
}

type result struct {
	stdout, stderr, pty string
	end                 *pb.ProcessEvent_EndEvent
	err                 error
}

func shell(script string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}, Stdin: new(false)}
}

func basic(name string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"))
}

func (b *box) start(ctx context.Context, t *testing.T, msg *pb.StartRequest, header ...string) (*run, error) {
	t.Helper()
	req := connect.NewRequest(msg)
	for i := 0; i < len(header); i += 2 {
		req.Header().Set(header[i], header[i+1])
	}
	stream, err := b.procs.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = stream.Close() })
	if !stream.Receive() {
		return nil, stream.Err()
	}
	first := stream.Msg().GetEvent().GetStart()
	if first == nil {
		t.Fatalf("first event = %v, want start", stream.Msg())
	}
	return &run{stream, first.GetPid()}, nil
}

func (r *run) wait() result {
	var res result
	var stdout, stderr, pty bytes.Buffer
	for r.stream.Receive() {
		d := r.stream.Msg().GetEvent().GetData()
		stdout.Write(d.GetStdout())
		stderr.Write(d.GetStderr())
		pty.Write(d.GetPty())
		if end := r.stream.Msg().GetEvent().GetEnd(); end != nil {
			res.end = end
		}
	}
	res.stdout, res.stderr, res.pty, res.err = stdout.String(), stderr.String(), pty.String(), r.stream.Err()
	return res
}

// until reads stdout until it contains text.
func (r *run) until(t *testing.T, text string) {
	t.Helper()
	var seen string
	for !strings.Contains(seen, text) {
		if !r.stream.Receive() {
			t.Fatalf("stream ended after %q: %v", seen, r.stream.Err())
		}
		d := r.stream.Msg().GetEvent().GetData()
		seen += string(d.GetStdout()) + string(d.GetPty())
	}
}

func (b *box) sh(t *testing.T, msg *pb.StartRequest, header ...string) result {
	t.Helper()
	r, err := b.start(limited(t), t, msg, header...)
	if err != nil {
		t.Fatalf("start %v: %v", msg, err)
	}
	return r.wait()
}

func byPID(pid uint32) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: tag}}
}

func ended(code int32, exited bool, status string) *pb.ProcessEvent_EndEvent {
	e := &pb.ProcessEvent_EndEvent{ExitCode: code, Exited: exited, Status: status}
	if code != 0 {
		e.Error = &status
	}
	return e
}

func checkEnd(t *testing.T, got, want *pb.ProcessEvent_EndEvent) {
	t.Helper()
	if got.String() != want.String() {
		t.Errorf("end = %v, want %v", got, want)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	notFound := "exit status 127"
	script := filepath.Join(b.home, "script")
	if err := os.WriteFile(script, []byte("echo no interpreter line: $1"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		msg            *pb.StartRequest
		stdout, stderr string
		end            *pb.ProcessEvent_EndEvent
	}{
		{"success", shell("echo out; echo err >&2"), "out\n", "err\n", ended(0, true, "exit status 0")},
		{"exit code", shell("exit 3"), "", "", ended(3, true, "exit status 3")},
		{"signalled", shell("kill -9 $$"), "", "", ended(-1, false, "signal: killed")},
		{"stdin is null", shell("cat; echo done"), "done\n", "", ended(0, true, "exit status 0")},
		{"missing", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "no-such-command"}}, "", "no-such-command: not found\n", ended(127, true, notFound)},
		{"missing path", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/no/such"}}, "", "/no/such: not found\n", ended(127, true, notFound)},
		{"not executable", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/etc/passwd"}}, "", "/etc/passwd: permission denied\n", ended(126, true, "exit status 126")},
		{"directory", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/etc"}}, "", "/etc: permission denied\n", ended(126, true, "exit status 126")},
		{"lookup in the request's PATH", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "echo", Envs: map[string]string{"PATH": "/nowhere"}}}, "", "echo: not found\n", ended(127, true, notFound)},
		{"relative", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "./script", Args: []string{"x"}}}, "no interpreter line: x\n", "", ended(0, true, "exit status 0")},
		{"cwd", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "pwd", Cwd: new("/usr/bin/..")}}, "/usr\n", "", ended(0, true, "exit status 0")},
		{"default cwd", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "pwd"}}, b.home + "\n", "", ended(0, true, "exit status 0")},
		{"global variable", shell("echo $GLOBAL $E2B_SANDBOX_ID"), "one i0\n", "", ended(0, true, "exit status 0")},
		{"request variable wins", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "echo $GLOBAL $USER $LOGNAME $HOME"}, Envs: map[string]string{"GLOBAL": "mine"}}}, "mine root root /root\n", "", ended(0, true, "exit status 0")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := b.sh(t, tt.msg)
			if got.err != nil || got.stdout != tt.stdout || got.stderr != tt.stderr {
				t.Errorf("got %q, %q, %v; want %q, %q", got.stdout, got.stderr, got.err, tt.stdout, tt.stderr)
			}
			checkEnd(t, got.end, tt.end)
		})
	}
}

// A command starts with no signal blocked or ignored that this process does not
// itself ignore: with SIGPIPE ignored, "yes | head" would not end by it.
func TestSignalsOfACommand(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	want, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	got := b.sh(t, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat", Args: []string{"/proc/self/status"}}})
	if sigs(got.stdout, "SigBlk") != strings.Repeat("0", 16) || sigs(got.stdout, "SigCgt") != strings.Repeat("0", 16) {
		t.Errorf("blocked %s, caught %s; want none", sigs(got.stdout, "SigBlk"), sigs(got.stdout, "SigCgt"))
	}
	if g, w := sigs(got.stdout, "SigIgn"), sigs(string(want), "SigIgn"); g != w {
		t.Errorf("ignored %s, want those of this process, %s", g, w)
	}
}

func sigs(status, field string) string {
	_, rest, _ := strings.Cut(status, field+":\t")
	mask, _, _ := strings.Cut(rest, "\n")
	return mask
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	file := filepath.Join(b.home, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		msg    *pb.StartRequest
		header []string
		code   connect.Code
		text   string
	}{
		{"unknown user", shell("true"), []string{"Authorization", basic("nobody-at-all")}, connect.CodeUnauthenticated, "invalid username: 'nobody-at-all'"},
		{"missing cwd", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "pwd", Cwd: new("/no/such")}}, nil, connect.CodeInvalidArgument, "cwd '/no/such' does not exist"},
		{"cwd is a file", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "pwd", Cwd: &file}}, nil, connect.CodeInvalidArgument, "cwd '" + file + "' is not a directory"},
		{"cwd with NUL", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "pwd", Cwd: new("/a\x00b")}}, nil, connect.CodeInvalidArgument, ""},
		{"command with NUL", &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/echo", Args: []string{"a\x00b"}}}, nil, connect.CodeInvalidArgument, ""},
		{"no command", &pb.StartRequest{}, nil, connect.CodeInvalidArgument, ""},
		{"bad timeout", shell("true"), []string{"Connect-Timeout-Ms", "soon"}, connect.CodeInvalidArgument, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context() // no deadline: it would set the timeout header
			_, err := b.start(ctx, t, tt.msg, tt.header...)
			var c *connect.Error
			if !errors.As(err, &c) || c.Code() != tt.code || tt.text != "" && c.Message() != tt.text {
				t.Errorf("start = %v, want %v %q", err, tt.code, tt.text)
			}
		})
	}
}

func TestOtherUser(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	got := b.sh(t, shell("id -u; id -g; echo $USER $HOME; touch "+b.home+"/x 2>/dev/null || echo denied"), "Authorization", basic("daemon"))
	want := daemon.Uid + "\n" + daemon.Gid + "\ndaemon " + daemon.HomeDir + "\ndenied\n"
	if got.stdout != want {
		t.Errorf("stdout = %q, want %q", got.stdout, want)
	}
	private := filepath.Join(b.home, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	msg := shell("pwd")
	msg.Process.Cwd = &private
	_, err := b.start(limited(t), t, msg, "Authorization", basic("daemon"))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("start in a private cwd = %v, want invalid_argument", err)
	}
}

func TestStdin(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	msg := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}} // unset: open
	r, err := b.start(ctx, t, msg)
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 1<<20)
	go func() {
		_, _ = b.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: byPID(r.pid), Input: stdin(big)}))
		stream := b.procs.StreamInput(ctx)
		_ = stream.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(r.pid)}}})
		_ = stream.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Keepalive{}})
		_ = stream.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: stdin("tail")}}})
		_, _ = stream.CloseAndReceive()
		_, _ = b.procs.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: byPID(r.pid)}))
	}()
	got := r.wait()
	if got.stdout != big+"tail" || got.end.GetExitCode() != 0 {
		t.Errorf("got %d bytes, end %v, err %v", len(got.stdout), got.end, got.err)
	}
}

func stdin(s string) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte(s)}}
}

func ptyInput(s string) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte(s)}}
}

func TestInputErrors(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	piped, err := b.start(ctx, t, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "sleep", Args: []string{"60"}}, Tag: new("piped"), Stdin: new(true)})
	if err != nil {
		t.Fatal(err)
	}
	null, err := b.start(ctx, t, shell("sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	tty, err := b.start(ctx, t, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}, Pty: &pb.PTY{Size: &pb.PTY_Size{Cols: 80, Rows: 24}}})
	if err != nil {
		t.Fatal(err)
	}
	send := func(p *pb.ProcessSelector, in *pb.ProcessInput) error {
		_, err := b.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: p, Input: in}))
		return err
	}
	resize := func(pid uint32) error {
		_, err := b.procs.Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: byPID(pid), Pty: &pb.PTY{Size: &pb.PTY_Size{Cols: 1, Rows: 1}}}))
		return err
	}
	closeIn := func(pid uint32) error {
		_, err := b.procs.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: byPID(pid)}))
		return err
	}
	signal := func(p *pb.ProcessSelector, s pb.Signal) error {
		_, err := b.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: p, Signal: s}))
		return err
	}
	for _, tt := range []struct {
		name string
		err  error
		want connect.Code
	}{
		{"stdin to a pty", send(byPID(tty.pid), stdin("x")), connect.CodeInternal},
		{"pty input without a pty", send(byPID(piped.pid), ptyInput("x")), connect.CodeInternal},
		{"stdin disabled", send(byPID(null.pid), stdin("x")), connect.CodeInternal},
		{"close stdin of a pty", closeIn(tty.pid), connect.CodeUnknown},
		{"close absent stdin", closeIn(null.pid), 0},
		{"close stdin", closeIn(piped.pid), 0},
		{"close stdin again", closeIn(piped.pid), 0},
		{"stdin closed", send(byPID(piped.pid), stdin("x")), connect.CodeInternal},
		{"resize without a pty", resize(piped.pid), connect.CodeInternal},
		{"resize", resize(tty.pid), 0},
		{"unknown pid", send(byPID(999999999), stdin("x")), connect.CodeNotFound},
		{"unknown tag", send(byTag("nope"), stdin("x")), connect.CodeNotFound},
		{"empty selector", send(&pb.ProcessSelector{}, stdin("x")), connect.CodeUnimplemented},
		{"no selector", send(nil, stdin("x")), connect.CodeUnimplemented},
		{"unknown signal", signal(byTag("piped"), 0), connect.CodeUnimplemented},
		{"signal nobody", signal(byPID(999999999), pb.Signal_SIGNAL_SIGKILL), connect.CodeNotFound},
		{"signal by tag", signal(byTag("piped"), pb.Signal_SIGNAL_SIGTERM), 0},
	} {
		if got := codeOf(tt.err); got != tt.want {
			t.Errorf("%s = %v, want %v", tt.name, tt.err, tt.want)
		}
	}
	if got := piped.wait(); got.end.GetStatus() != "signal: terminated" {
		t.Errorf("end = %v, want terminated", got.end)
	}
}

func codeOf(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

func TestPTY(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	r, err := b.start(ctx, t, &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", `stty -echo; stty size; trap 'stty size' WINCH; echo ready; while :; do read line || continue; echo "got $line"; [ "$line" = end ] && exit 5; done`}},
		Pty:     &pb.PTY{Size: &pb.PTY_Size{Cols: 100, Rows: 30}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.until(t, "30 100\r\nready")
	_, err = b.procs.Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: byPID(r.pid), Pty: &pb.PTY{Size: &pb.PTY_Size{Cols: 120, Rows: 40}}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"\n", "end\n"} {
		if _, err := b.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: byPID(r.pid), Input: ptyInput(line)})); err != nil {
			t.Fatal(err)
		}
	}
	got := r.wait()
	if !strings.Contains(got.pty, "40 120") || !strings.Contains(got.pty, "got end") {
		t.Errorf("pty output = %q", got.pty)
	}
	checkEnd(t, got.end, ended(5, true, "exit status 5"))
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	pidFile := filepath.Join(b.home, "child")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	// The header alone, so that the client does not end the stream itself.
	r, err := b.start(context.WithoutCancel(ctx), t, shell("sleep 61 & echo $! > "+pidFile+"; echo started; wait"), "Connect-Timeout-Ms", "400")
	if err != nil {
		t.Fatal(err)
	}
	got := r.wait()
	if connect.CodeOf(got.err) != connect.CodeDeadlineExceeded || got.end != nil {
		t.Errorf("stream ended with %v, end %v; want deadline_exceeded", got.err, got.end)
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	waitGone(t, pid)
	waitGone(t, int(r.pid))
}

// waitGone polls until a process is no more than a zombie.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
	}
	t.Errorf("process %d still runs", pid)
}

func TestZeroTimeoutIsNone(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	r, err := b.start(t.Context(), t, shell("sleep 0.1; echo late"), "Connect-Timeout-Ms", "0")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.wait(); got.stdout != "late\n" || got.err != nil {
		t.Errorf("got %q, %v", got.stdout, got.err)
	}
}

func TestKillReleasesPipes(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	r, err := b.start(ctx, t, shell("sleep 62 & echo $!; wait"))
	if err != nil {
		t.Fatal(err)
	}
	r.until(t, "\n")
	if _, err := b.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: byPID(r.pid), Signal: pb.Signal_SIGNAL_SIGKILL})); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(r.pid), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("kill -0 right after the kill = %v, want ESRCH", err)
	}
	// The background sleep holds the pipe; its own survival is the contract.
	checkEnd(t, r.wait().end, ended(-1, false, "signal: killed"))
	list, err := b.procs.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) != 0 {
		t.Errorf("List() = %v, %v, want none", list, err)
	}
}

func TestEndWaitsForPipes(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	got := b.sh(t, shell("(sleep 0.3; echo late) & exit 4"))
	if got.stdout != "late\n" {
		t.Errorf("stdout = %q, want what the background process wrote", got.stdout)
	}
	checkEnd(t, got.end, ended(4, true, "exit status 4"))
}

func TestListConnectAndExitMemory(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	msg := &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "read line; echo $line; exit 6"}, Envs: map[string]string{"A": "b"}, Cwd: new("/")},
		Tag:     new("job"), Stdin: new(true),
	}
	r, err := b.start(ctx, t, msg)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.stream.Close() // the process goes on
	list, err := b.procs.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) != 1 {
		t.Fatalf("List() = %v, %v", list, err)
	}
	p := list.Msg.GetProcesses()[0]
	if p.GetPid() != r.pid || p.GetTag() != "job" || p.GetConfig().String() != msg.GetProcess().String() {
		t.Errorf("List() = %v", p)
	}
	attached, err := b.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byTag("job")}))
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	if !attached.Receive() || attached.Msg().GetEvent().GetStart().GetPid() != r.pid {
		t.Fatalf("first event of Connect = %v, %v", attached.Msg(), attached.Err())
	}
	if _, err := b.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: byPID(r.pid), Input: stdin("hello\n")})); err != nil {
		t.Fatal(err)
	}
	checkAttached(t, attached, "hello\n", 6)
	for _, sel := range []*pb.ProcessSelector{byPID(r.pid), byTag("job")} {
		late, err := b.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: sel}))
		if err != nil {
			t.Fatal(err)
		}
		if !late.Receive() || late.Msg().GetEvent().GetStart().GetPid() != r.pid {
			t.Fatalf("late Connect = %v, %v", late.Msg(), late.Err())
		}
		checkAttached(t, late, "", 6)
		_ = late.Close()
	}
	// The tag is used again: the old record goes.
	again := shell("sleep 30")
	again.Tag = new("job")
	r2, err := b.start(ctx, t, again)
	if err != nil {
		t.Fatal(err)
	}
	now, err := b.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byTag("job")}))
	if err != nil || !now.Receive() || now.Msg().GetEvent().GetStart().GetPid() != r2.pid {
		t.Errorf("Connect by a reused tag = %v, %v", now.Msg(), err)
	}
	_ = now.Close()
	missing, err := b.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byPID(999999)}))
	if err != nil {
		t.Fatal(err)
	}
	defer missing.Close()
	if missing.Receive() || missing.Err() == nil || connect.CodeOf(missing.Err()) != connect.CodeNotFound ||
		!strings.Contains(missing.Err().Error(), "process with pid 999999 not found") {
		t.Errorf("Connect to nothing = %v", missing.Err())
	}
}

func checkAttached(t *testing.T, s *connect.ServerStreamForClient[pb.ConnectResponse], stdout string, code int32) {
	t.Helper()
	var out string
	var end *pb.ProcessEvent_EndEvent
	for s.Receive() {
		out += string(s.Msg().GetEvent().GetData().GetStdout())
		end = s.Msg().GetEvent().GetEnd()
	}
	if out != stdout || end.GetExitCode() != code || s.Err() != nil {
		t.Errorf("attached stream: %q, %v, %v; want %q, exit %d", out, end, s.Err(), stdout, code)
	}
}

func TestKeepalive(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	r, err := b.start(limited(t), t, shell("sleep 30"), "Keepalive-Ping-Interval", "1")
	if err != nil {
		t.Fatal(err)
	}
	if !r.stream.Receive() || r.stream.Msg().GetEvent().GetKeepalive() == nil {
		t.Errorf("event = %v, %v, want keepalive", r.stream.Msg(), r.stream.Err())
	}
}

// TestSlowReader lets one subscriber stall and checks that its process is held
// up in bounded memory while another runs freely.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	const size = 64 << 20 // beyond what sockets buffer
	finished := filepath.Join(b.home, "finished")
	slow, err := b.start(ctx, t, shell(fmt.Sprintf("head -c %d /dev/zero; touch %s", size, finished)))
	if err != nil {
		t.Fatal(err)
	}
	fast := b.sh(t, shell("head -c 8388608 /dev/zero; echo done >&2"))
	if len(fast.stdout) != 8<<20 || fast.stderr != "done\n" {
		t.Fatalf("the other process delivered %d bytes, %v", len(fast.stdout), fast.err)
	}
	if _, err := os.Stat(finished); err == nil {
		t.Error("the process whose reader stalls has written all of its output")
	}
	got := slow.wait()
	if len(got.stdout) != size || got.end.GetExitCode() != 0 {
		t.Errorf("slow reader got %d bytes, end %v", len(got.stdout), got.end)
	}
}

func TestNobodyReads(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	msg := shell("read x; head -c 50000000 /dev/zero; exit 9")
	msg.Stdin = new(true)
	r, err := b.start(ctx, t, msg)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.stream.Close()
	if _, err := b.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: byPID(r.pid), Input: stdin("\n")})); err != nil {
		t.Fatal(err)
	}
	waitGone(t, int(r.pid))
}

func TestLimits(t *testing.T) {
	t.Parallel()
	const output, wall = "killed: output limit of 1048576 bytes reached", "killed: wall time limit of 2s reached"
	for _, tt := range []struct {
		name, script, status, limit string
	}{
		{"output", "sleep 63 & echo $! > %s; yes", output, control.LimitOutput},
		{"stderr counts", "sleep 63 & echo $! > %s; yes >&2", output, control.LimitOutput},
		{"wall time", "sleep 63 & echo $! > %s; wait", wall, control.LimitWallTime},
		{"wall time of what was left behind", "sleep 63 & echo $! > %s", wall, control.LimitWallTime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := start(t, func(in *control.Init) {
				in.Limits.OutputBytes = 1 << 20
				if tt.limit == control.LimitWallTime { // it must not come first on a slow machine
					in.Limits.WallTime = 2 * time.Second
				}
			})
			pidFile := filepath.Join(b.home, "pid")
			begun := time.Now()
			got := b.sh(t, shell(fmt.Sprintf(tt.script, pidFile)))
			if took := time.Since(begun); took > 30*time.Second { // the script takes 63
				t.Errorf("ended after %v, want soon after the limit", took)
			}
			checkEnd(t, got.end, ended(-1, false, tt.status))
			if n := len(got.stdout) + len(got.stderr); n > 1<<20 || tt.limit == control.LimitOutput && n != 1<<20 {
				t.Errorf("%d bytes of output were delivered", n)
			}
			raw, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
			waitGone(t, pid)
			wantLimitEvent(t, b, tt.limit)
		})
	}
}

func wantLimitEvent(t *testing.T, b *box, limit string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case ev := <-b.control.Events():
			if ev.Type != control.EventLimit {
				continue
			}
			if ev.Limit != limit || ev.PID == 0 || !strings.HasPrefix(ev.Cmd, "/bin/sh -c") {
				t.Errorf("event = %+v, want limit %q", ev, limit)
			}
			return
		case <-timeout:
			t.Errorf("no %q event", limit)
			return
		}
	}
}

// TestWireJSON checks the bytes that the SDKs parse.
func TestWireJSON(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	body := `{"process":{"cmd":"/bin/sh","args":["-c","printf hi; exit 3"]},"stdin":false,"unknown":1}`
	frame := string([]byte{0, 0, 0, 0, byte(len(body))}) + body
	code, text, h := b.request(t, http.MethodPost, "/process.Process/Start", frame,
		"Content-Type", "application/connect+json", "X-Access-Token", token, "Accept-Encoding", "gzip", "Connect-Accept-Encoding", "gzip")
	if code != 200 || h.Get("Content-Type") != "application/connect+json" {
		t.Fatalf("Start = %d %v %q", code, h, text)
	}
	var frames []string
	for raw := []byte(text); len(raw) >= 5; {
		n := int(raw[3])<<8 | int(raw[4])
		frames = append(frames, fmt.Sprint(raw[0], " ", strings.ReplaceAll(string(raw[5:5+n]), " ", "")))
		raw = bytes.Clone(raw[5+n:])
	}
	if len(frames) != 4 {
		t.Fatalf("frames = %q", frames)
	}
	frames[0] = frames[0][:len(`0 {"event":{"start":{"pid":`)]
	want := []string{
		`0 {"event":{"start":{"pid":`,
		`0 {"event":{"data":{"stdout":"aGk="}}}`,
		`0 {"event":{"end":{"exitCode":3,"exited":true,"status":"exitstatus3","error":"exitstatus3"}}}`,
		`2 {}`,
	}
	if diff := cmp.Diff(want, frames); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
}
