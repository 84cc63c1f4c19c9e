package daemon

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// saved is what a saved tree says of a file: its size, then start, end and place
// of each part.
func saved(numbers ...uint64) string {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return string(b)
}

func tree(t *testing.T, name, body string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
	if err == nil {
		_, err = io.WriteString(w, body)
	}
	if err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeChar, Name: "gone"}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestWriteLayer(t *testing.T) {
	t.Parallel()
	layer := strings.NewReader("aaaabbbbcccc")
	for name, tt := range map[string]struct{ said, want string }{
		"empty":             {saved(0), ""},
		"one part":          {saved(4, 0, 4, 4), "bbbb"},
		"cut short":         {saved(3, 0, 4, 4), "bbb"},
		"parts and a hole":  {saved(12, 0, 4, 8, 8, 12, 0), "cccc\x00\x00\x00\x00aaaa"},
		"a hole at the end": {saved(6, 0, 4, 0), "aaaa\x00\x00"},
		"only a hole":       {saved(3), "\x00\x00\x00"},
		"beyond the layer":  {saved(4, 0, 4, 10), "cc\x00\x00"},
	} {
		var out bytes.Buffer
		if err := writeLayer(&out, tree(t, "f", tt.said), layer); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tr := tar.NewReader(&out)
		h, err := tr.Next()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil || h.Name != "f" || string(body) != tt.want {
			t.Errorf("%s: %q, %v; want %q", name, body, err, tt.want)
		}
		if h, err := tr.Next(); err != nil || h.Typeflag != tar.TypeChar {
			t.Errorf("%s: what follows = %+v, %v", name, h, err)
		}
	}
	for name, bad := range map[string]string{
		"too short": "1234", "half a part": saved(4, 0, 4), "backwards": saved(8, 4, 8, 0, 0, 4, 0), "negative": saved(1<<63, 0, 4, 0),
		"ends before it begins": saved(4, 4, 0, 0), "before the file": saved(4, 0, 4, 1<<63),
	} {
		if err := writeLayer(io.Discard, tree(t, "f", bad), layer); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// What the engine holds of a file does not grow with the number of its parts,
// beyond the record itself.
func TestFileContentOfManyParts(t *testing.T) { //nolint:paralleltest // counts allocations
	const n = 10_000
	numbers := []uint64{2 * n}
	var want strings.Builder
	for i := range uint64(n) {
		numbers = append(numbers, 2*i, 2*i+1, i%2)
		want.WriteByte("ab"[i%2])
		want.WriteByte(0)
	}
	record, layer := saved(numbers...), strings.NewReader("ab")
	if made := testing.AllocsPerRun(3, func() {
		if _, _, err := fileContent(int64(len(record)), strings.NewReader(record), layer); err != nil {
			t.Error(err)
		}
	}); made > 10 {
		t.Errorf("%.0f allocations for %d parts", made, n)
	}
	content, size, err := fileContent(int64(len(record)), strings.NewReader(record), layer)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(content); err != nil || size != 2*n || string(got) != want.String() {
		t.Errorf("%d bytes of %d, %v; they are not those of the parts", len(got), size, err)
	}
}
