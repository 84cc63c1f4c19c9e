// Package agentclient is the server's side of the agent's public protocol
// (Connect and HTTP on port 49983), over any provider.Route. It also talks to
// E2B's own agent, whose protocol it is. The private channel is package
// control.
package agentclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/gen/filesystem/filesystemconnect"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

const (
	// maxErrorBody bounds what is read of an error from the guest.
	maxErrorBody = 4 << 10
	// maxMessage bounds one message from the guest, decompressed: whatever listens
	// on the agent's port may claim any size.
	maxMessage = 32 << 20
)

// Client talks to one agent. Safe for concurrent use; Close releases its idle
// connections.
type Client struct {
	http  *http.Client
	base  *url.URL
	token secret.Value
	head  http.Header
	procs processconnect.ProcessClient
	files filesystemconnect.FilesystemClient
}

// New returns a client of the agent that r, a route to port 49983, reaches. It
// does not connect yet.
func New(r provider.Route, token secret.Value) *Client {
	transport := &http.Transport{
		DisableCompression:  true, // bytes pass as they are
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      256 << 10,
		WriteBufferSize:     256 << 10,
	}
	c := &Client{base: &url.URL{Scheme: "http", Host: "sandbox"}, token: token, head: r.Header.Clone()}
	if r.Dial != nil {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return r.Dial(ctx) }
	} else if r.URL != nil {
		c.base = r.URL
	}
	c.http = &http.Client{
		Transport:     &authorizing{next: transport, c: c},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := connect.WithReadMaxBytes(maxMessage)
	c.procs = processconnect.NewProcessClient(c.http, c.base.String(), opts)
	c.files = filesystemconnect.NewFilesystemClient(c.http, c.base.String(), opts)
	return c
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Filesystem is the generated client of the filesystem service.
func (c *Client) Filesystem() filesystemconnect.FilesystemClient { return c.files }

// Ready asks once whether the agent answers; nil means yes.
func (c *Client) Ready(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, "/health", nil, nil, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ReadFile opens a file of the guest as user, or as the default user when that
// is empty. The caller closes it. errdefs.ErrNotFound when it does not exist.
func (c *Client) ReadFile(ctx context.Context, user, path string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, "/files", fileQuery(user, path), nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// WriteFile makes content the content of a file of the guest, with its missing
// parents.
func (c *Client) WriteFile(ctx context.Context, user, path string, content io.Reader) error {
	resp, err := c.do(ctx, http.MethodPost, "/files", fileQuery(user, path), content,
		http.Header{"Content-Type": {"application/octet-stream"}})
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	return resp.Body.Close()
}

func fileQuery(user, path string) url.Values {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return q
}

// do sends a request and turns any status above 299 into an error.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader, h http.Header) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", path, err)
	}
	maps.Copy(req.Header, h)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w: %w", path, errdefs.ErrUnavailable, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, fmt.Errorf("agent %s: %w", path, statusError(resp))
}

func statusError(resp *http.Response) error {
	var body struct {
		Message string `json:"message"`
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	_ = json.Unmarshal(raw, &body) // no message then
	return fmt.Errorf("%s: %q: %w", resp.Status, body.Message, statusKind(resp.StatusCode))
}

func statusKind(code int) error {
	switch code {
	case http.StatusBadRequest, http.StatusNotAcceptable:
		return errdefs.ErrInvalidArgument
	case http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusTooManyRequests, http.StatusInsufficientStorage:
		return errdefs.ErrResourceExhausted
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrInternal
}

// kind gives an RPC error its class.
func kind(err error) error {
	var c *connect.Error
	if !errors.As(err, &c) {
		return err
	}
	var class error = errdefs.ErrInternal
	switch c.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		class = errdefs.ErrInvalidArgument
	case connect.CodeNotFound:
		class = errdefs.ErrNotFound
	case connect.CodeAlreadyExists:
		class = errdefs.ErrAlreadyExists
	case connect.CodeUnauthenticated:
		class = errdefs.ErrUnauthenticated
	case connect.CodePermissionDenied:
		class = errdefs.ErrPermissionDenied
	case connect.CodeResourceExhausted:
		class = errdefs.ErrResourceExhausted
	case connect.CodeUnavailable:
		class = errdefs.ErrUnavailable
	case connect.CodeDeadlineExceeded:
		class = context.DeadlineExceeded
	case connect.CodeCanceled:
		class = context.Canceled
	}
	return fmt.Errorf("%w: %w", class, err)
}

// authorizing adds the token and the route's headers to every request.
type authorizing struct {
	next *http.Transport
	c    *Client
}

func (a *authorizing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name, values := range a.c.head {
		r.Header[name] = values
	}
	if !a.c.token.IsZero() {
		r.Header.Set("X-Access-Token", a.c.token.Reveal())
	}
	return a.next.RoundTrip(r)
}

// CloseIdleConnections lets http.Client find it.
func (a *authorizing) CloseIdleConnections() { a.next.CloseIdleConnections() }

func basicUser(name string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"))
}
