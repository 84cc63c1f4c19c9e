package kernel

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel/zmtp"
)

// joined returns two ends of a connection; ours receives messages up to limit.
func joined(t *testing.T, limit int64) (ours, theirs *zmtp.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	errs := make(chan error, 1)
	go func() {
		var err error
		theirs, err = zmtp.Handshake(b, zmtp.Dealer, MaxMessage)
		errs <- err
	}()
	if ours, err = zmtp.Handshake(a, zmtp.Dealer, limit); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// A reply that is too large, as that of an exception with a long text is, ends
// the cell like any other.
func TestLargeReply(t *testing.T) {
	t.Parallel()
	const limit = 4096
	j := &jupyter{process: &process{done: make(chan struct{})}, session: "s", key: []byte("k")}
	var shell, iopub *zmtp.Conn
	j.shell, shell = joined(t, limit)
	j.iopub, iopub = joined(t, limit)
	j.readers.Go(func() { j.read(j.shell, true) })
	j.readers.Go(func() { j.read(j.iopub, false) })
	go func() {
		if _, err := shell.Recv(); err != nil {
			return
		}
		_ = shell.Send([]byte(delimiter), make([]byte, limit))
		idle := [][]byte{[]byte(`{"msg_type":"status"}`), []byte(`{"msg_id":"s_1"}`), []byte("{}"), []byte(`{"execution_state":"idle"}`)}
		_ = iopub.Send(append([][]byte{[]byte(delimiter), j.sign(idle)}, idle...)...)
	}()
	var said []string
	done := make(chan error, 1)
	go func() { done <- j.execute("raise", false, nil, func(e Event) { said = append(said, e.Text) }) }()
	select {
	case err := <-done:
		if err != nil || len(said) != 1 || said[0] != tooLarge {
			t.Errorf("execute() = %v, said %q", err, said)
		}
	case <-time.After(10 * time.Second):
		t.Error("the cell does not end")
	}
	close(j.done)
	_, _ = j.shell.Close(), j.iopub.Close()
	j.readers.Wait()
}
