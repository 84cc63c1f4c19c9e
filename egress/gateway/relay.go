package gateway

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// smallBuffer is what an idle direction of a relay holds, bigBuffer what
	// a busy one borrows.
	smallBuffer = 2 << 10
	bigBuffer   = 64 << 10
)

// relay moves bytes both ways until both sides have ended or one breaks. A
// side that has sent all it has is half-closed on the other; a connection
// without traffic is never closed for that. Bytes for the guest come from ur,
// bytes from it from cr.
func (f *flow) relay(client net.Conn, cr io.Reader, up net.Conn, ur io.Reader) error {
	var wg sync.WaitGroup
	var upErr, downErr error
	wg.Go(func() {
		if upErr = copyStream(up, cr, &f.out, &f.b.g.buffers); upErr != nil {
			f.abort()
			return
		}
		_ = closeWrite(up)
	})
	wg.Go(func() {
		if downErr = copyStream(client, ur, &f.in, &f.b.g.buffers); downErr != nil {
			f.abort()
			return
		}
		_ = closeWrite(client)
	})
	wg.Wait()
	if upErr != nil {
		return broken(upErr)
	}
	return broken(downErr)
}

// broken names a broken connection for the record; ends that are none of the
// user's concern are not errors.
func broken(err error) error {
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return errors.New("connection broke")
}

// copyStream copies until the end of src and counts. It returns nil at the end
// of the stream. An idle stream holds a small buffer only.
func copyStream(dst io.Writer, src io.Reader, count *atomic.Int64, buffers *sync.Pool) error {
	small := make([]byte, smallBuffer)
	for {
		n, err := src.Read(small)
		if werr := forward(dst, small[:n], count); werr != nil {
			return werr
		}
		if err == nil && n == len(small) {
			err = copyBusy(dst, src, count, buffers)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyBusy copies with a big buffer until a read does not even fill a small
// one.
func copyBusy(dst io.Writer, src io.Reader, count *atomic.Int64, buffers *sync.Pool) error {
	p := buffers.Get().(*[bigBuffer]byte)
	defer buffers.Put(p)
	for {
		n, err := src.Read(p[:])
		if werr := forward(dst, p[:n], count); werr != nil {
			return werr
		}
		if err != nil || n < smallBuffer {
			return err
		}
	}
}

func forward(dst io.Writer, p []byte, count *atomic.Int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := dst.Write(p)
	count.Add(int64(n))
	return err
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// closeGently ends a connection so that the guest gets to read the last answer
// although it may still be sending: a close with unread bytes resets.
func closeGently(c net.Conn) {
	_ = closeWrite(c)
	_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, _ = io.CopyN(io.Discard, c, 256<<10)
	_ = c.Close()
}
