package agentclient_test

import (
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"connectrpc.com/connect"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/gen/filesystem"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

// A guest that has taken the agent's place must not choose how much memory the
// server spends on its answers.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	mux := http.NewServeMux()
	mux.HandleFunc("/process.Process/Start", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/connect+proto")
		head := make([]byte, 5)
		binary.BigEndian.PutUint32(head[1:], size)
		_, _ = w.Write(head)
		_, _ = io.Copy(w, io.LimitReader(zeros{}, size))
	})
	mux.HandleFunc("/filesystem.Filesystem/ListDir", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/proto")
		_, _ = io.Copy(w, io.LimitReader(zeros{}, size))
	})
	guest := httptest.NewServer(mux)
	t.Cleanup(guest.Close)
	base, err := url.Parse(guest.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := agentclient.New(provider.Route{URL: base}, secret.New("token"))
	t.Cleanup(c.Close)
	for name, call := range map[string]func(context.Context) error{
		"stream": func(ctx context.Context) error {
			_, err := c.Exec(ctx, agentclient.Command{Cmd: "true"})
			return err
		},
		"answer": func(ctx context.Context) error {
			_, err := c.Filesystem().ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{}))
			return err
		},
	} {
		if err := call(t.Context()); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("%s: error = %v, want one about its size", name, err)
		}
	}
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
