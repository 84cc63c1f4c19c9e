package cli

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestOutput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	write := func(to, text string) {
		t.Helper()
		o, err := openOutput(to)
		if err != nil {
			t.Fatalf("openOutput() = %v", err)
		}
		defer o.drop()
		if _, err := o.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := o.keep(); err != nil {
			t.Errorf("keep() = %v", err)
		}
	}
	read := func(want string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil || string(b) != want {
			t.Errorf("the file has %q, %v, want %q", b, err, want)
		}
	}
	write(file, "one")
	read("one")
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode = %v, %v", fi.Mode(), err)
	}
	// A link stays one, and what it points to is replaced.
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	write(link, "two")
	read("two")
	if _, err := os.Readlink(link); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
	// One that is not kept leaves what was there.
	o, err := openOutput(file)
	if err != nil {
		t.Fatal(err)
	}
	o.drop()
	read("two")
	// What is no file stays what it is.
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	write(pipe, "three")
	b := make([]byte, 5)
	if _, err := r.Read(b); err != nil || string(b) != "three" {
		t.Errorf("through the pipe came %q, %v", b, err)
	}
	if fi, err := os.Lstat(pipe); err != nil || fi.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the pipe is %v, %v", fi.Mode(), err)
	}
	if _, err := openOutput(dir); err == nil {
		t.Error("openOutput() of a directory succeeded")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("left are %v, %v", left, err)
	}
}
