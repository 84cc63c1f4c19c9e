package duplex_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/duplex"
)

// logged collects what a server logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func serve(t *testing.T, h http.HandlerFunc) (*httptest.Server, *logged) {
	t.Helper()
	s, out := httptest.NewUnstartedServer(h), new(logged)
	s.Config.ErrorLog = log.New(out, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s, out
}

// exchange sends part of a chunked request, takes the answer, sends the rest of
// the body and says what the connection does then.
func exchange(t *testing.T, s *httptest.Server) (resp *http.Response, body string, after error) {
	t.Helper()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
	r := bufio.NewReader(c)
	resp, err = http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("the answer breaks off: %v", err)
	}
	fmt.Fprint(c, "0\r\n\r\n")
	_, after = r.ReadByte()
	return resp, string(b), after
}

func TestAnswerBeforeTheEnd(t *testing.T) {
	t.Parallel()
	s, out := serve(t, func(w http.ResponseWriter, r *http.Request) {
		d := duplex.Enable(w, r)
		first := make([]byte, 1)
		if _, err := io.ReadFull(r.Body, first); err != nil {
			t.Errorf("read: %v", err)
		}
		d.Answer(w.Header())
		fmt.Fprintf(w, "got %s", first)
	})
	resp, body, after := exchange(t, s)
	if !resp.Close || body != "got a" {
		t.Errorf("answer %q, close %t; want the connection to close", body, resp.Close)
	}
	if after != io.EOF { //nolint:errorlint // of the connection itself
		t.Errorf("the connection then reads %v, want its end", after)
	}
	s.Close() // waits for the connection
	if strings.Contains(out.String(), "panic") {
		t.Errorf("server: %s", out)
	}
}

func TestAnswerAfterTheEnd(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		d := duplex.Enable(w, r)
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read: %v", err)
		}
		d.Answer(w.Header())
		fmt.Fprintf(w, "got %s", b)
	})
	for _, body := range []string{"", "known length"} {
		resp, err := s.Client().Post(s.URL, "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if resp.Close || err != nil || string(got) != "got "+body {
			t.Errorf("answer %q, close %t, %v; want the connection to stay", got, resp.Close, err)
		}
		_ = resp.Body.Close()
	}
}

// While the handler answers it goes on reading.
func TestBothAtOnce(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		d := duplex.Enable(w, r)
		d.Answer(w.Header())
		_ = http.NewResponseController(w).Flush()
		if _, err := io.Copy(w, r.Body); err != nil {
			t.Errorf("read while answering: %v", err)
		}
	})
	in, out := io.Pipe()
	go func() {
		fmt.Fprint(out, "early")
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, in)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go func() {
		fmt.Fprint(out, " late")
		_ = out.Close()
	}()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "early late" {
		t.Errorf("read %q, %v", got, err)
	}
}
