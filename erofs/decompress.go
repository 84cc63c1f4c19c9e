package erofs

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// ratioFree is how much may come out before the ratio counts.
	ratioFree = 64 << 20
	// zstdWindow bounds the memory of the zstd decoder.
	zstdWindow = 128 << 20
	// entryOverhead is what an entry may add to a tar stream besides its data:
	// headers, long names, attributes, padding.
	entryOverhead = 16 << 10
)

// decompress returns the tar stream in r, whatever it is packed with, as a
// reader that fails once the stream is larger than limits can mean.
func decompress(r io.Reader, limits Limits) (io.ReadCloser, error) {
	in := &meter{r: r}
	br := bufio.NewReaderSize(in, 256<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	g := &guard{in: in, limits: limits, r: br, close: func() {}}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, invalid("gzip: %w", err)
		}
		g.r, g.packed = z, true
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderMaxMemory(zstdWindow))
		if err != nil {
			return nil, invalid("zstd: %w", err)
		}
		g.r, g.packed, g.close = z, true, z.Close
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, invalid("archive is packed with xz; give it plain or packed with gzip or zstd")
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, invalid("archive is packed with bzip2; give it plain or packed with gzip or zstd")
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return nil, invalid("archive is a zip file; give a tar")
	}
	return g, nil
}

// meter counts what was read.
type meter struct {
	r io.Reader
	n int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	return n, err
}

// guard ends a stream that grows beyond its limits.
type guard struct {
	r      io.Reader
	in     *meter
	out    int64
	packed bool
	limits Limits
	close  func()
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	g.out += int64(n)
	if g.packed && g.out > ratioFree && g.out/g.limits.Ratio > g.in.n {
		return 0, exhausted("archive grows more than %d times when unpacked", g.limits.Ratio)
	}
	if over := g.out - g.limits.Bytes; over > 0 && over/entryOverhead > int64(g.limits.Entries) {
		return 0, exhausted("archive is larger than %d bytes", g.limits.Bytes)
	}
	return n, err
}

func (g *guard) Close() error {
	g.close()
	return nil
}
