package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Status is what a server is and whether it can create sandboxes.
type Status struct {
	Version       string     `json:"version"`
	Health        Health     `json:"health"`
	Providers     []Provider `json:"providers"`
	Limits        Limits     `json:"limits"`
	EgressDefault string     `json:"egressDefault"`
	PublicDomain  string     `json:"publicDomain"`
	Team          string     `json:"team"`
}

// Health says whether a create can succeed now, and why not.
type Health struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
}

// Provider is an isolation backend of the server.
type Provider struct {
	Name           string   `json:"name"`
	Default        bool     `json:"default"`
	Limits         []string `json:"limits"`
	EnforcesEgress bool     `json:"enforcesEgress"`
	Snapshots      []string `json:"snapshots"`
}

// Limits are defaults and maxima of a server.
type Limits struct {
	MaxTimeoutSeconds   int64     `json:"maxTimeoutSeconds"`
	MaxSandboxesPerTeam int       `json:"maxSandboxesPerTeam"`
	Default             Resources `json:"default"`
	Max                 Resources `json:"max"`
}

// Key is an API key without the key itself, except from CreateKey.
type Key struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Team string `json:"team"`
	// Mask shows the first and last digits, to tell keys apart.
	Mask       string    `json:"mask,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero"`
	RevokedAt  time.Time `json:"revokedAt,omitzero"`
	// Key is the secret; only the answer of CreateKey has it.
	Key string `json:"key,omitempty"`
}

// Template is what a sandbox starts from.
type Template struct {
	ID           string    `json:"id"`
	Names        []string  `json:"names"`
	Public       bool      `json:"public"`
	BuildID      string    `json:"buildID,omitempty"`
	BuildStatus  string    `json:"buildStatus,omitempty"`
	Source       string    `json:"source,omitempty"`
	RootfsDigest string    `json:"rootfsDigest,omitempty"`
	RootfsBytes  int64     `json:"rootfsBytes,omitempty"`
	Resources    Resources `json:"resources,omitzero"`
	CreatedAt    time.Time `json:"createdAt"`
	UpdatedAt    time.Time `json:"updatedAt"`
}

// Status asks the server about itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, request{method: http.MethodGet, path: "/status", out: &s})
	return s, err
}

// Keys lists the API keys of the team.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var keys []Key
	err := c.do(ctx, request{method: http.MethodGet, path: "/keys", out: &keys})
	return keys, err
}

// CreateKey makes an API key; its Key field is shown this once.
func (c *Client) CreateKey(ctx context.Context, name string) (Key, error) {
	var k Key
	err := c.do(ctx, request{method: http.MethodPost, path: "/keys", in: map[string]string{"name": name}, out: &k})
	return k, err
}

// RevokeKey makes a key worthless at once.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/keys/" + url.PathEscape(id)})
}

// Templates lists what the team can start from.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var t []Template
	err := c.do(ctx, request{method: http.MethodGet, path: "/templates", out: &t})
	return t, err
}

// TemplateLock is what exactly a build of a template is made of.
type TemplateLock struct {
	TemplateID   string `json:"templateID"`
	BuildID      string `json:"buildID"`
	RootfsDigest string `json:"rootfsDigest"`
	RootfsBytes  int64  `json:"rootfsBytes"`
	Source       string `json:"source"`
	// Recipe is the digest of what was asked for, empty for a tar file.
	Recipe string `json:"recipe,omitempty"`
	// NPM is the version of npm, where it is not Debian's.
	NPM       string    `json:"npm,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	Files     int       `json:"files"`
	// DataBytes is the sum of the lengths of all files.
	DataBytes int64             `json:"dataBytes"`
	Warnings  []string          `json:"warnings,omitempty"`
	Packages  []TemplatePackage `json:"packages"`
}

// TemplatePackage is one package of a template.
type TemplatePackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

// TemplateLock tells what the current build of a template, by id or name, is made
// of; errdefs.ErrNotFound where that was not recorded.
func (c *Client) TemplateLock(ctx context.Context, ref string) (TemplateLock, error) {
	var l TemplateLock
	err := c.do(ctx, request{method: http.MethodGet, path: "/templates/" + url.PathEscape(ref) + "/lock", out: &l})
	return l, err
}

// DeleteTemplate deletes a template by id or name; errdefs.ErrConflict while
// live sandboxes are based on it.
func (c *Client) DeleteTemplate(ctx context.Context, ref string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/templates/" + url.PathEscape(ref)})
}
