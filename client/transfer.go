package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// ImportedTemplate is what became of an archive.
type ImportedTemplate struct {
	ID      string   `json:"id"`
	Names   []string `json:"names"`
	Tags    []string `json:"tags"`
	BuildID string   `json:"buildID"`
	// Status is BuildReady or, while its start command is run, BuildBuilding.
	Status       string `json:"status"`
	RootfsDigest string `json:"rootfsDigest"`
	RootfsBytes  int64  `json:"rootfsBytes"`
	// Memory says that the memory in the archive was taken up.
	Memory bool `json:"memory"`
	// Notes say what could not be taken over as it was.
	Notes []string `json:"notes,omitempty"`
}

// ExportTemplate returns the archive of a template, [team/]name[:tag], and its length: an
// OCI image layout in a tar file. memory adds the saved memory, which only the
// same team of the same installation can take up. A body that ends before size
// bytes gives io.ErrUnexpectedEOF. The caller closes it.
func (c *Client) ExportTemplate(ctx context.Context, ref string, memory bool) (body io.ReadCloser, size int64, err error) {
	q := url.Values{}
	if memory {
		q.Set("memory", "true")
	}
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/templates/" + url.PathEscape(ref) + "/export", query: q}, "application/x-tar")
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// ImportTemplate makes a template of an archive of size bytes: one of
// ExportTemplate, an OCI layout, or what `docker save` writes. name is
// [team/]name[:tag]; empty means the name in the archive.
func (c *Client) ImportTemplate(ctx context.Context, name string, r io.Reader, size int64) (ImportedTemplate, error) {
	var out ImportedTemplate
	u := c.base.String() + "/native/v1/templates/import"
	if name != "" {
		u += "?" + url.Values{"name": {name}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, io.NopCloser(r))
	if err != nil {
		return out, fmt.Errorf("make request: %w", err)
	}
	if size == 0 {
		req.Body = http.NoBody // a length of 0 would else mean that it is not known
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/x-tar")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.agent)
	if !c.key.IsZero() {
		req.Header.Set("X-API-Key", c.key.Reveal())
	}
	resp, err := c.roundTrip(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&out); err != nil {
		return out, &Error{Op: "POST /native/v1/templates/import", Status: resp.StatusCode, Message: "the answer is not what a Caisson server sends: is the URL right?", cause: err}
	}
	return out, nil
}
