package template

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// keystore writes one in the format JKS, with certificates that were put there
// at the times stamps.
func keystore(tag uint32, stamps ...uint64) []byte {
	var b bytes.Buffer
	text := func(s string) {
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(len(s))))
		b.WriteString(s)
	}
	for _, n := range []uint32{0xfeedfeed, 2, uint32(len(stamps))} {
		b.Write(binary.BigEndian.AppendUint32(nil, n))
	}
	for _, s := range stamps {
		b.Write(binary.BigEndian.AppendUint32(nil, tag))
		text("debian:some.pem")
		b.Write(binary.BigEndian.AppendUint64(nil, s))
		text("X.509")
		b.Write(binary.BigEndian.AppendUint32(nil, 5))
		b.WriteString("bytes")
	}
	return append(b.Bytes(), sealKeystore(b.Bytes())...)
}

func TestStampKeystore(t *testing.T) {
	t.Parallel()
	got := keystore(2, 1795000000123, 1795000000999)
	if err := stampKeystore(got, 1700000000000); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keystore(2, 1700000000000, 1700000000000), got); diff != "" {
		t.Errorf("keystore (-want +got):\n%s", diff)
	}
	for name, b := range map[string][]byte{"empty": nil, "short": []byte("x"), "PKCS 12": bytes.Repeat([]byte{0x30}, 100)} {
		was := bytes.Clone(b)
		if err := stampKeystore(b, 1); err != nil || !bytes.Equal(b, was) {
			t.Errorf("%s: %v, changed to %x", name, err, b)
		}
	}
	whole := keystore(2, 1, 2)
	endless := bytes.Clone(whole)
	binary.BigEndian.PutUint32(endless[8:], 1<<32-1)
	long := bytes.Clone(whole)
	binary.BigEndian.PutUint16(long[16:], 1<<16-1)
	for name, b := range map[string][]byte{
		"private key": keystore(1, 1), "cut": whole[:50], "count": endless, "length": long,
	} {
		if err := stampKeystore(b, 1); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want that it is invalid", name, err)
		}
	}
}

func TestFixKeystore(t *testing.T) {
	t.Parallel()
	w := writer(t, text(keystorePath, string(keystore(2, 1795000000123))))
	if err := fixKeystore(w); err != nil {
		t.Fatal(err)
	}
	want := string(keystore(2, uint64(installTime.UnixMilli())))
	if got := content(t, w, keystorePath); got != want {
		t.Errorf("keystore = %q, want %q", got, want)
	}
	if err := fixKeystore(writer(t)); err != nil {
		t.Errorf("without a keystore: %v", err)
	}
}
