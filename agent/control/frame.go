package control

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame is
//
//	0xFF "CSN1" epoch(16) length(8) checksum(8) payload
//
// with numbers in lower-case hexadecimal and a JSON payload. The byte 0xFF
// occurs nowhere else: not in hexadecimal, and not in JSON, which is UTF-8. So
// wherever a reader stands, in the middle of whatever a dead peer left behind,
// the next 0xFF starts a frame, and a truncated frame can never swallow the
// one after it.
const (
	frameStart  = 0xFF
	frameMagic  = "CSN1"
	headerBytes = len(frameMagic) + 16 + 8 + 8

	// maxToServer bounds what a server accepts from a guest, maxToAgent what
	// an agent accepts; Init carries variables and a CA bundle.
	maxToServer = 64 << 10
	maxToAgent  = 4 << 20
)

var errFrameSize = errors.New("control message is too large")

// The table is read-only after start.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type frame struct {
	epoch   uint64
	payload []byte
}

// checksum covers epoch and length as they stand in the header, and payload.
func checksum(epochAndLength, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(epochAndLength, castagnoli), castagnoli, payload)
}

// encodeFrame returns the wire form, or an error if payload is larger than
// limit.
func encodeFrame(epoch uint64, payload []byte, limit int) ([]byte, error) {
	if len(payload) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errFrameSize, len(payload), limit)
	}
	b := make([]byte, 0, 1+headerBytes+len(payload))
	b = append(b, frameStart)
	b = append(b, frameMagic...)
	b = hex.AppendEncode(b, binary.BigEndian.AppendUint64(nil, epoch))
	b = hex.AppendEncode(b, binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
	sum := checksum(b[1+len(frameMagic):], payload)
	b = hex.AppendEncode(b, binary.BigEndian.AppendUint32(nil, sum))
	return append(b, payload...), nil
}

// frameReader reads frames and skips everything that is none.
type frameReader struct {
	r     *bufio.Reader
	limit int
}

func newFrameReader(r io.Reader, limit int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 16<<10), limit: limit}
}

// next returns the next sound frame. Its only errors are those of the reader.
func (fr *frameReader) next() (frame, error) {
	for {
		// ReadSlice fails with ErrBufferFull on long garbage; go on then.
		if _, err := fr.r.ReadSlice(frameStart); err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			return frame{}, err
		}
		f, ok, err := fr.body()
		if err != nil || ok {
			return f, err
		}
	}
}

// body reads what follows a start byte. It reports false, standing before the
// next start byte if it met one, when that is no sound frame.
func (fr *frameReader) body() (frame, bool, error) {
	var header [headerBytes]byte
	if ok, err := fr.fill(header[:]); err != nil || !ok {
		return frame{}, false, err
	}
	if string(header[:len(frameMagic)]) != frameMagic {
		return frame{}, false, nil
	}
	numbers := header[len(frameMagic):]
	var raw [16]byte
	if _, err := hex.Decode(raw[:], numbers); err != nil {
		return frame{}, false, nil
	}
	size := binary.BigEndian.Uint32(raw[8:12])
	if int64(size) > int64(fr.limit) {
		return frame{}, false, nil
	}
	payload := make([]byte, size)
	if ok, err := fr.fill(payload); err != nil || !ok {
		return frame{}, false, err
	}
	if checksum(numbers[:24], payload) != binary.BigEndian.Uint32(raw[12:16]) {
		return frame{}, false, nil
	}
	return frame{epoch: binary.BigEndian.Uint64(raw[:8]), payload: payload}, true, nil
}

// fill reads len(b) bytes. It reports false, leaving the start byte unread,
// when a new frame begins before b is full.
func (fr *frameReader) fill(b []byte) (bool, error) {
	for n := 0; n < len(b); {
		if _, err := fr.r.Peek(1); err != nil {
			return false, err
		}
		chunk, _ := fr.r.Peek(min(fr.r.Buffered(), len(b)-n))
		for i, c := range chunk {
			if c == frameStart {
				_, _ = fr.r.Discard(i)
				return false, nil
			}
		}
		n += copy(b[n:], chunk)
		clear(chunk) // tokens pass here, and the buffer lives as long as the channel
		_, _ = fr.r.Discard(len(chunk))
	}
	return true, nil
}
