package template

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the format's own checksum, of public certificates
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/erofs"
)

// keystorePath is where Debian puts the certificate authorities for Java, in a
// keystore that notes when each was put there; keystorePassword is what such a
// store of public certificates is sealed with everywhere.
const (
	keystorePath     = "etc/ssl/certs/java/cacerts"
	keystorePassword = "changeit"
	maxKeystore      = 16 << 20
)

// fixKeystore makes the times in Java's keystore that of every other file, so that
// the same certificates make the same image.
func fixKeystore(w *erofs.Writer) error {
	b, err := w.ReadFile(keystorePath, maxKeystore)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := stampKeystore(b, installTime.UnixMilli()); err != nil {
		return fmt.Errorf("%s: %w", keystorePath, err)
	}
	return w.Overwrite(keystorePath, b)
}

// stampKeystore sets the time of every certificate in a keystore of the format JKS
// to ms, the milliseconds since 1970. One of another format stays as it is;
// errdefs.ErrInvalidArgument for one that is cut short or has other entries.
func stampKeystore(b []byte, ms int64) error {
	const (
		magic, version, certificate = 0xfeedfeed, 2, 2
		header                      = 12
	)
	if len(b) < header+sha1.Size || binary.BigEndian.Uint32(b) != magic || binary.BigEndian.Uint32(b[4:]) != version {
		return nil
	}
	body, seal := b[:len(b)-sha1.Size], b[len(b)-sha1.Size:]
	rest := body[header:]
	// take returns the next n bytes, nil when there are fewer.
	take := func(n int) (out []byte) {
		if n >= 0 && n <= len(rest) {
			out, rest = rest[:n:n], rest[n:]
		}
		return out
	}
	text := func() bool {
		n := take(2)
		return n != nil && take(int(binary.BigEndian.Uint16(n))) != nil
	}
	for range binary.BigEndian.Uint32(b[8:]) {
		tag := take(4)
		if tag == nil || binary.BigEndian.Uint32(tag) != certificate || !text() {
			return fmt.Errorf("the keystore is damaged or holds more than certificates: %w", errdefs.ErrInvalidArgument)
		}
		stamp := take(8)
		if stamp == nil || !text() {
			return fmt.Errorf("the keystore is cut short: %w", errdefs.ErrInvalidArgument)
		}
		size := take(4)
		if size == nil || take(int(binary.BigEndian.Uint32(size))) == nil {
			return fmt.Errorf("the keystore is cut short: %w", errdefs.ErrInvalidArgument)
		}
		binary.BigEndian.PutUint64(stamp, uint64(ms)) //nolint:gosec // after 1970
	}
	copy(seal, sealKeystore(body))
	return nil
}

// sealKeystore is the checksum at the end of a keystore.
func sealKeystore(body []byte) []byte {
	var in bytes.Buffer
	for _, u := range utf16.Encode([]rune(keystorePassword)) {
		in.Write([]byte{byte(u >> 8), byte(u)})
	}
	in.WriteString("Mighty Aphrodite")
	in.Write(body)
	sum := sha1.Sum(in.Bytes()) //nolint:gosec // see above
	return sum[:]
}
