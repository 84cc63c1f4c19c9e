package batch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestOutput compares what is kept with what was written, in pieces of any size.
func TestOutput(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, half - 1, half, half + 1, 2*half - 1, 2 * half, 2*half + 1, 3*half + 7, 5 * half} {
		for _, piece := range []int{1000, 32 << 10, half, half + 3, 3 * half} {
			var o output
			all := make([]byte, size)
			for i := range all {
				all[i] = byte('a' + r.IntN(26))
			}
			for rest := all; len(rest) > 0; {
				n := min(1+r.IntN(piece), len(rest))
				if took, err := o.Write(rest[:n]); took != n || err != nil {
					t.Fatalf("Write(%d) = %d, %v", n, took, err)
				}
				rest = rest[n:]
			}
			want := all
			if size > 2*half {
				gap := fmt.Sprintf("\n[... %d bytes left out ...]\n", size-2*half)
				want = bytes.Join([][]byte{all[:half], []byte(gap), all[size-half:]}, nil)
			}
			got := o.result()
			if got.Text != string(want) || got.Bytes != int64(size) || got.Truncated != (size > 2*half) {
				t.Errorf("%d bytes in pieces of up to %d: kept %d, %d in all, truncated %v", size, piece, len(got.Text), got.Bytes, got.Truncated)
			}
		}
	}
}
