// Package client is the public Go SDK: sandboxes, their egress log, keys and
// templates over the native API, and commands, terminals and files over the
// agent protocol. It needs nothing of the server but its URL and a key, and
// its API is kept stable.
//
//	c, err := client.New("http://127.0.0.1:3000", client.WithAPIKey(key))
//	sb, err := c.Create(ctx, client.CreateOptions{Template: "base"})
//	defer c.Kill(ctx, sb.ID)
//	p, err := c.Agent(sb).Start(ctx, client.Command{Path: "/bin/echo", Args: []string{"hi"}})
//	exit, err := p.Wait(os.Stdout, os.Stderr)
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/secret"
	"github.com/containerd/errdefs"
)

// maxBody bounds a JSON answer.
const maxBody = 16 << 20

// Client talks to one server. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	http  *http.Client
	key   secret.Value
	agent string
}

// Option changes how a Client is made.
type Option func(*settings)

type settings struct {
	key   secret.Value
	http  *http.Client
	agent string
	roots *x509.CertPool
}

// WithAPIKey sends key with every request.
func WithAPIKey(key string) Option { return func(s *settings) { s.key = secret.New(key) } }

// WithHTTPClient replaces the HTTP client; it must not have a total timeout,
// because streams are long.
func WithHTTPClient(h *http.Client) Option { return func(s *settings) { s.http = h } }

// WithUserAgent replaces the user agent.
func WithUserAgent(name string) Option { return func(s *settings) { s.agent = name } }

// WithRootCAs trusts these authorities instead of the system's.
func WithRootCAs(pool *x509.CertPool) Option { return func(s *settings) { s.roots = pool } }

// New returns a client of the server at rawURL, which is http or https with a
// host; a path is kept as prefix. Nothing is sent yet.
func New(rawURL string, opts ...Option) (*Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%w: %q is not the URL of a server, such as http://127.0.0.1:3000", errdefs.ErrInvalidArgument, rawURL)
	}
	s := settings{agent: "caisson-go"}
	for _, o := range opts {
		o(&s)
	}
	if s.http == nil {
		s.http = &http.Client{
			Transport: newTransport(s.roots),
			// An API does not redirect, and headers must not travel.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.RawQuery, u.Fragment = "", ""
	return &Client{base: u, http: s.http, key: s.key, agent: s.agent}, nil
}

func newTransport(roots *x509.CertPool) http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true,
		ResponseHeaderTimeout: 0,
	}
}

// URL returns the address of the server.
func (c *Client) URL() string { return c.base.String() }

// request is one call of the native API, or of E2B's.
type request struct {
	e2b          bool
	method, path string
	query        url.Values
	in, out      any
	// idempotencyKey is sent when it is not empty.
	idempotencyKey string
	// most bounds the answer in bytes; 0 means maxBody.
	most int64
	// header receives the response headers when it is not nil.
	header *http.Header
}

func (c *Client) do(ctx context.Context, r request) error {
	resp, err := c.send(ctx, r, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if r.header != nil {
		*r.header = resp.Header
	}
	if r.out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
		return nil
	}
	most := cmp.Or(r.most, maxBody)
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return &Error{Op: r.method + " " + r.path, Message: "reading the answer: " + err.Error(), cause: err}
	}
	if int64(len(data)) > most {
		return &Error{Op: r.method + " " + r.path, Status: resp.StatusCode, Message: "the answer is too large"}
	}
	if err := json.Unmarshal(data, r.out); err != nil {
		return &Error{Op: r.method + " " + r.path, Status: resp.StatusCode, Message: "the answer is not what a Caisson server sends: is the URL right?", cause: err}
	}
	return nil
}

// send makes the request and turns every status of 400 and above into an
// *Error. The caller closes the body.
func (c *Client) send(ctx context.Context, r request, accept string) (*http.Response, error) {
	u := c.base.String() + "/native/v1" + r.path
	if r.e2b {
		u = c.base.String() + r.path
	}
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.in != nil {
		data, err := json.Marshal(r.in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if r.in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", r.idempotencyKey)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", c.agent)
	if !c.key.IsZero() {
		req.Header.Set("X-API-Key", c.key.Reveal())
	}
	return c.roundTrip(req)
}

func (c *Client) roundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, transportError(req, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, responseError(req, resp)
	}
	return resp, nil
}

func transportError(req *http.Request, err error) error {
	op := req.Method + " " + req.URL.Path
	if ctx := req.Context(); ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	e := &Error{Op: op, Code: "unreachable", Message: fmt.Sprintf("no answer from %s://%s: %v", req.URL.Scheme, req.URL.Host, err), cause: err}
	return e
}
