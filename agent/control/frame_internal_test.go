package control

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
)

func mustFrame(tb testing.TB, epoch uint64, payload string) []byte {
	tb.Helper()
	b, err := encodeFrame(epoch, []byte(payload), maxToAgent)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestFrameLimits(t *testing.T) {
	t.Parallel()
	if _, err := encodeFrame(1, make([]byte, 11), 10); !errors.Is(err, errFrameSize) {
		t.Errorf("encodeFrame above the limit = %v", err)
	}
	big := mustFrame(t, 1, string(bytes.Repeat([]byte("x"), 100)))
	small := mustFrame(t, 1, "ok")
	got, err := newFrameReader(bytes.NewReader(append(big, small...)), 50).next()
	if err != nil || string(got.payload) != "ok" {
		t.Errorf("next() = %q, %v; want the frame after the one above the limit", got.payload, err)
	}
}

func TestFrameChecksum(t *testing.T) {
	t.Parallel()
	whole := mustFrame(t, 0x1122334455667788, `{"kind":"hello"}`)
	after := mustFrame(t, 2, "after")
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		got, err := newFrameReader(bytes.NewReader(append(bad, after...)), maxToAgent).next()
		if err != nil || string(got.payload) != "after" {
			t.Fatalf("byte %d flipped: next() = %q, %v; want the next frame", i, got.payload, err)
		}
	}
}

// FuzzFrames puts arbitrary bytes before a sound frame: it must be found, with
// memory bounded by the limit.
func FuzzFrames(f *testing.F) {
	whole := mustFrame(f, 7, `{"kind":"hello"}`)
	f.Add([]byte{})
	f.Add(whole)
	f.Add(whole[:20])
	f.Add(bytes.Repeat([]byte{0xff}, 50))
	f.Add([]byte("\xffCSN1ffffffffffffffffffffffff00000000"))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		const limit = 1 << 10
		want := mustFrame(t, 42, "found")
		fr := newFrameReader(bytes.NewReader(append(bytes.Clone(garbage), want...)), limit)
		found := false
		for {
			got, err := fr.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("next() = %v", err)
			}
			if len(got.payload) > limit {
				t.Fatalf("payload of %d bytes is above the limit", len(got.payload))
			}
			found = found || got.epoch == 42 && string(got.payload) == "found"
		}
		if !found {
			t.Fatal("the sound frame was lost")
		}
	})
}

func TestHugeLengthAllocatesNothing(t *testing.T) {
	header := append([]byte{0xff}, "CSN10000000000000001fffffff000000000"...)
	src := bytes.Repeat(header, 100)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := newFrameReader(bytes.NewReader(src), maxToServer).next()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.EOF) {
		t.Errorf("next() = %v, want EOF", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated for frames that claim 4 GiB", n)
	}
}
