// Package embedded holds the two programs that travel inside the caisson
// binary: the engine and the in-sandbox agent. "make engine agent" puts them,
// compressed, into bin/; a build without them compiles and says so when one is
// needed. Package server and provider/gvisor import it.
package embedded

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

//go:embed all:bin
var bin embed.FS

// maxProgram bounds what one artefact may unpack to.
const maxProgram = 256 << 20

// ErrAbsent says that the running binary was built without the artefact.
var ErrAbsent = errors.New("this binary was built without it; run make build")

// Artifact is one embedded program.
type Artifact struct {
	// Name is the program's file name, for example "caisson-engine".
	Name string
	// Digest is the SHA-256 of the compressed artefact in lower-case hex.
	Digest string

	packed []byte
}

// Engine returns the engine, or ErrAbsent.
func Engine() (Artifact, error) { return load("caisson-engine") }

// Agent returns the agent, or ErrAbsent.
func Agent() (Artifact, error) { return load("caisson-agent") }

func load(name string) (Artifact, error) {
	b, err := bin.ReadFile("bin/" + name + ".zst")
	if errors.Is(err, fs.ErrNotExist) {
		return Artifact{}, fmt.Errorf("%s: %w", name, ErrAbsent)
	}
	if err != nil {
		return Artifact{}, fmt.Errorf("read embedded %s: %w", name, err)
	}
	sum := sha256.Sum256(b)
	return Artifact{Name: name, Digest: hex.EncodeToString(sum[:]), packed: b}, nil
}

// Bytes returns the program.
func (a Artifact) Bytes() ([]byte, error) {
	var out bytes.Buffer
	if err := a.writeTo(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Unpack puts the program into dir as NAME-DIGEST, executable, unless it is
// there already, and returns its absolute path. Several processes may unpack at
// once; a half-written file is never seen under the name.
func (a Artifact) Unpack(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", a.Name, err)
	}
	path := filepath.Join(dir, a.Name+"-"+a.Digest[:16])
	if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("unpack %s: %w", a.Name, err)
	}
	f, err := os.CreateTemp(dir, a.Name+"-*.new")
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", a.Name, err)
	}
	defer os.Remove(f.Name()) // fails once it has been renamed
	err = errors.Join(a.writeTo(f), f.Chmod(0o755), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", a.Name, err)
	}
	return path, nil
}

func (a Artifact) writeTo(w io.Writer) error {
	r, err := zstd.NewReader(bytes.NewReader(a.packed), zstd.WithDecoderMaxMemory(maxProgram))
	if err != nil {
		return fmt.Errorf("open %s: %w", a.Name, err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, maxProgram+1))
	if err != nil {
		return fmt.Errorf("decompress %s: %w", a.Name, err)
	}
	if n > maxProgram {
		return fmt.Errorf("decompress %s: larger than %d bytes", a.Name, maxProgram)
	}
	return nil
}
