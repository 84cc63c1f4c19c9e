package client

import (
	"context"
	"encoding/base64"
	"net/http"
	"strconv"

	"connectrpc.com/connect"
	"github.com/caisson-dev/caisson/gen/filesystem/filesystemconnect"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
	"github.com/caisson-dev/caisson/secret"
)

// agentPort is where the agent listens in every sandbox.
const agentPort = 49983

// maxMessage bounds one message of the agent protocol.
const maxMessage = 16 << 20

// Agent runs commands and moves files in one sandbox.
type Agent struct {
	c     *Client
	id    string
	token secret.Value
	user  string
	proc  processconnect.ProcessClient
	fs    filesystemconnect.FilesystemClient
}

// Agent returns the agent of a sandbox that came from Create, Get or Find.
func (c *Client) Agent(sb Sandbox) *Agent { return c.newAgent(sb, "") }

// As returns the same agent acting as another user; "" is the template's.
func (a *Agent) As(user string) *Agent {
	return a.c.newAgent(Sandbox{ID: a.id, AgentToken: a.token.Reveal()}, user)
}

func (c *Client) newAgent(sb Sandbox, user string) *Agent {
	a := &Agent{c: c, id: sb.ID, token: secret.New(sb.AgentToken), user: user}
	opts := connect.WithClientOptions(connect.WithReadMaxBytes(maxMessage))
	h := agentHTTP{a}
	a.proc = processconnect.NewProcessClient(h, c.base.String(), opts)
	a.fs = filesystemconnect.NewFilesystemClient(h, c.base.String(), opts)
	return a
}

// agentHTTP adds routing and authentication to every request.
type agentHTTP struct{ a *Agent }

func (h agentHTTP) Do(req *http.Request) (*http.Response, error) {
	h.a.route(req, agentPort)
	return h.a.c.http.Do(req)
}

// route addresses a port of the sandbox in the header form.
func (a *Agent) route(req *http.Request, port uint16) {
	req.Header.Set("E2b-Sandbox-Id", a.id)
	req.Header.Set("E2b-Sandbox-Port", strconv.Itoa(int(port)))
	req.Header.Set("User-Agent", a.c.agent)
	if !a.token.IsZero() {
		req.Header.Set("X-Access-Token", a.token.Reveal())
	}
	if a.user != "" {
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(a.user+":")))
	}
}

// Health reports nil when the sandbox runs; errdefs.ErrNotFound when not.
func (a *Agent) Health(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.c.base.String()+"/health", nil)
	if err != nil {
		return err
	}
	a.route(req, agentPort)
	resp, err := a.c.roundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
