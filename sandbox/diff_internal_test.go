package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// What is written comes back, zeros take no disk, and there is an end.
func TestSparse(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const most = 64 << 20
	s := &sparse{f: f, left: most}
	var want bytes.Buffer
	for _, part := range [][]byte{[]byte("begin"), make([]byte, 40<<20), []byte("middle"), make([]byte, 20<<20)} {
		want.Write(part)
		if n, err := s.Write(part); n != len(part) || err != nil {
			t.Fatalf("Write(%d bytes) = %d, %v", len(part), n, err)
		}
	}
	if err := f.Truncate(s.at); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes came back (%v), want %d equal ones", len(got), err, want.Len())
	}
	if fi, err := f.Stat(); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Blocks*512 > 4<<20 {
			t.Errorf("it takes %d bytes of disk", st.Blocks*512)
		}
	}
	if _, err := s.Write(make([]byte, most)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Write(too much) = %v", err)
	}
}
