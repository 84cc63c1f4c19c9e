package ingress_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// streams answers with one line and then holds the stream open.
func streams(started chan<- struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		started <- struct{}{}
		<-r.Context().Done()
	})
}

func h2c() *http.Transport {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: &p}
}

func TestKillBreaksStreams(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		transport *http.Transport
	}{
		{"http/1.1", &http.Transport{}}, {"h2c", h2c()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			started := make(chan struct{}, 1)
			w := start(t, options{ports: map[uint16]http.Handler{49983: streams(started)}})
			client := &http.Client{Transport: tc.transport}
			defer client.CloseIdleConnections()
			resp, err := client.Do(w.request(t, "POST", "/process.Process/Start", nil, append(byHeader("49983"), "X-Access-Token", agentToken)...))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			if line, err := lines.ReadString('\n'); err != nil || line != "first\n" {
				t.Fatalf("read %q, %v", line, err)
			}
			<-started
			w.kill(boxID)
			if rest, err := io.ReadAll(lines); err == nil {
				t.Errorf("the stream ended cleanly after %q; it must be broken", rest)
			}
			health, body := w.get(t, "/health", byHeader("49983")...)
			if health.StatusCode != 502 || !strings.Contains(body, `"message":"The sandbox was not found"`) {
				t.Errorf("health after the kill = %d %s, want 502", health.StatusCode, body)
			}
		})
	}
}

// The wire itself: a chunked body must not get its last chunk.
func TestKillLeavesChunkedBodyUnfinished(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 1)
	w := start(t, options{ports: map[uint16]http.Handler{3000: streams(started)}})
	c, err := net.Dial("tcp", w.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: 3000-%s.localhost\r\n\r\n", boxID)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	wire := bufio.NewReader(c)
	for line := ""; line != "first\n"; {
		if line, err = wire.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	<-started
	w.kill(boxID)
	rest, _ := io.ReadAll(wire)
	if strings.Contains(string(rest), "0\r\n\r\n") {
		t.Errorf("after the kill came %q, which ends the body cleanly", rest)
	}
}

func TestKillBreaksRequestsThatWait(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 1)
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-r.Context().Done()
	})}})
	failed := make(chan error, 1)
	req := w.request(t, "GET", "/", nil, byHeader("3000")...)
	go func() {
		resp, err := w.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		failed <- err
	}()
	<-started
	w.kill(boxID)
	if err := <-failed; err == nil {
		t.Error("a request in flight was answered; its connection must break")
	}
}

func TestWebSocketAndItsEnd(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if c.Write(r.Context(), kind, append([]byte("echo "), msg...)) != nil {
				return
			}
		}
	})}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, w.url, &websocket.DialOptions{
		HTTPClient: w.client,
		HTTPHeader: http.Header{"E2b-Sandbox-Id": {boxID}, "E2b-Sandbox-Port": {"3000"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, msg, err := c.Read(ctx); err != nil || string(msg) != "echo hi" {
		t.Fatalf("read %q, %v", msg, err)
	}
	w.kill(boxID)
	_, _, err = c.Read(ctx)
	if err == nil || ctx.Err() != nil {
		t.Errorf("after the kill the socket reads %v, want it broken", err)
	}
	if websocket.CloseStatus(err) != -1 {
		t.Errorf("after the kill the socket closed politely: %v", err)
	}
}

func TestASandboxThatComesBackGetsNewConnections(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: says("app")}})
	if _, body := w.get(t, "/", byHeader("3000")...); body != "app" {
		t.Fatal(body)
	}
	before := w.dials.Load()
	w.kill(boxID)
	w.add(boxID, agentToken, options{})
	if _, body := w.get(t, "/", byHeader("3000")...); body != "app" {
		t.Fatal(body)
	}
	if w.dials.Load() == before {
		t.Error("the connection of the sandbox that was killed was used again")
	}
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: says("app"), 4000: says("other")}})
	for range 5 {
		if _, body := w.get(t, "/", byHeader("3000")...); body != "app" {
			t.Fatal(body)
		}
	}
	if _, body := w.get(t, "/", byHeader("4000")...); body != "other" {
		t.Errorf("port 4000 answered %q: ports share a connection", body)
	}
	if n := w.dials.Load(); n != 2 {
		t.Errorf("dialled %d times, want 2", n)
	}
}
