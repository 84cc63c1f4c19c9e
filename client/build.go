package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

// The states of a build.
const (
	BuildWaiting  = "waiting"
	BuildBuilding = "building"
	BuildReady    = "ready"
	BuildFailed   = "error"
)

// NewBuild asks for a build of a template to be registered.
type NewBuild struct {
	// Name is [team/]name[:tag]; a template of that name is made if there is none.
	Name string `json:"name"`
	// Tags go beside the one in Name; "default" when there is none at all.
	Tags []string `json:"tags,omitempty"`
	// CPUs and MemoryMiB of its sandboxes; 0 means the server's default.
	CPUs      int   `json:"cpuCount,omitempty"`
	MemoryMiB int64 `json:"memoryMB,omitempty"`
	// FreeDiskMiB is what its sandboxes can write at least.
	FreeDiskMiB int64 `json:"minFreeDiskMb,omitempty"`
}

// RegisteredBuild is a build that waits for its recipe.
type RegisteredBuild struct {
	TemplateID string   `json:"templateID"`
	BuildID    string   `json:"buildID"`
	Public     bool     `json:"public"`
	Names      []string `json:"names"`
	Tags       []string `json:"tags"`
}

// Recipe says what to build. Exactly one of FromImage and FromTemplate is given.
type Recipe struct {
	FromImage    string         `json:"fromImage,omitempty"`
	FromTemplate string         `json:"fromTemplate,omitempty"`
	Registry     *RegistryLogin `json:"fromImageRegistry,omitempty"`
	// Force ignores every cache.
	Force bool         `json:"force,omitempty"`
	Steps []RecipeStep `json:"steps,omitempty"`
	// Start runs in every sandbox from its beginning; Ready exits with 0 when it
	// is ready.
	Start string `json:"startCmd,omitempty"`
	Ready string `json:"readyCmd,omitempty"`
}

// RecipeStep is one instruction: RUN, COPY, ENV, WORKDIR, USER or ARG.
type RecipeStep struct {
	Type string   `json:"type"`
	Args []string `json:"args"`
	// FilesHash names the files of a COPY, which UploadFiles has sent.
	FilesHash string `json:"filesHash,omitempty"`
	// Force ignores the cache from here on.
	Force bool `json:"force,omitempty"`
}

// RegistryLogin is a login to the registry of FromImage. The server keeps it
// encrypted until the build has ended, and shows it nowhere.
type RegistryLogin struct {
	Type     string `json:"type"` // "registry"
	Username string `json:"username"`
	Password string `json:"password"`
}

// Build is the state of a build and a page of its log.
type Build struct {
	TemplateID string     `json:"templateID"`
	BuildID    string     `json:"buildID"`
	Status     string     `json:"status"`
	Log        []BuildLog `json:"logEntries"`
	// Reason says why a build failed.
	Reason *BuildReason `json:"reason,omitempty"`
}

// BuildReason is why a build failed, which step is to blame, and the last lines
// of that step.
type BuildReason struct {
	Message string `json:"message"`
	// Step is "base", a number from 1 on, "finalize", or empty.
	Step string     `json:"step,omitempty"`
	Log  []BuildLog `json:"logEntries,omitempty"`
}

// BuildLog is one line of a build's log.
type BuildLog struct {
	Time    time.Time `json:"timestamp"`
	Level   string    `json:"level"`
	Step    string    `json:"step,omitempty"`
	Message string    `json:"message"`
	// Done is set on the line that ends a step; then Cached and DurationMS say
	// how it went.
	Done       bool  `json:"done,omitempty"`
	Cached     bool  `json:"cached,omitempty"`
	DurationMS int64 `json:"durationMs,omitempty"`
}

// TemplateDetail is a template with its newest builds, at most 100.
type TemplateDetail struct {
	ID            string         `json:"templateID"`
	Names         []string       `json:"names"`
	Public        bool           `json:"public"`
	CreatedAt     time.Time      `json:"createdAt"`
	UpdatedAt     time.Time      `json:"updatedAt"`
	LastSpawnedAt time.Time      `json:"lastSpawnedAt,omitzero"`
	SpawnCount    int64          `json:"spawnCount"`
	Builds        []BuildSummary `json:"builds"`
}

// BuildSummary is a build as a template lists it.
type BuildSummary struct {
	ID         string    `json:"buildID"`
	Status     string    `json:"status"`
	CPUs       int       `json:"cpuCount"`
	MemoryMiB  int64     `json:"memoryMB"`
	DiskMiB    int64     `json:"diskSizeMB"`
	CreatedAt  time.Time `json:"createdAt"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
}

// TemplateTag is a name of one build.
type TemplateTag struct {
	Tag       string    `json:"tag"`
	BuildID   string    `json:"buildID"`
	CreatedAt time.Time `json:"createdAt"`
}

// RegisterBuild makes a build that waits for its recipe.
func (c *Client) RegisterBuild(ctx context.Context, b NewBuild) (RegisteredBuild, error) {
	var out RegisteredBuild
	err := c.do(ctx, request{e2b: true, method: http.MethodPost, path: "/v3/templates", in: b, out: &out})
	return out, err
}

// FilesPresent says whether the team has uploaded files of that hash.
func (c *Client) FilesPresent(ctx context.Context, templateID, hash string) (bool, error) {
	present, _, err := c.files(ctx, templateID, hash)
	return present, err
}

func (c *Client) files(ctx context.Context, templateID, hash string) (present bool, link string, err error) {
	var out struct {
		Present bool   `json:"present"`
		URL     string `json:"url"`
	}
	err = c.do(ctx, request{e2b: true, method: http.MethodGet, path: "/templates/" + url.PathEscape(templateID) + "/files/" + url.PathEscape(hash), out: &out})
	return out.Present, out.URL, err
}

// UploadFiles sends a tar archive of size bytes, gzipped or not, for the COPY
// steps with that hash.
func (c *Client) UploadFiles(ctx context.Context, templateID, hash string, r io.Reader, size int64) error {
	_, link, err := c.files(ctx, templateID, hash)
	if err != nil {
		return err
	}
	u, err := url.Parse(link)
	if err != nil || link == "" {
		return fmt.Errorf("the server gave no link to upload to: %w", errdefs.ErrInternal)
	}
	// The link is signed whatever host it was asked for; ours is the one that works.
	u.Scheme, u.Host = c.base.Scheme, c.base.Host
	u.Path = c.base.Path + u.Path
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), io.NopCloser(r))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if size == 0 {
		req.Body = http.NoBody // a length of 0 would else mean that it is not known
	}
	req.ContentLength = size
	req.Header.Set("User-Agent", c.agent)
	resp, err := c.roundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// StartBuild gives a waiting build its recipe.
func (c *Client) StartBuild(ctx context.Context, templateID, buildID string, r Recipe) error {
	return c.do(ctx, request{e2b: true, method: http.MethodPost, path: "/v2" + buildPath(templateID, buildID), in: r})
}

func buildPath(templateID, buildID string) string {
	return "/templates/" + url.PathEscape(templateID) + "/builds/" + url.PathEscape(buildID)
}

// BuildStatus returns the state of a build and at most 100 lines of its log, from
// that offset on. A build that has ended has all its lines.
func (c *Client) BuildStatus(ctx context.Context, templateID, buildID string, offset int) (Build, error) {
	var out Build
	err := c.do(ctx, request{
		e2b: true, method: http.MethodGet, path: buildPath(templateID, buildID) + "/status",
		query: url.Values{"logsOffset": {strconv.Itoa(offset)}}, out: &out,
	})
	return out, err
}

// CancelBuild ends a build that waits or is building; errdefs.ErrConflict when it
// has ended.
func (c *Client) CancelBuild(ctx context.Context, templateID, buildID string) error {
	return c.do(ctx, request{method: http.MethodPost, path: buildPath(templateID, buildID) + "/cancel"})
}

// Template returns one template by id or name.
func (c *Client) Template(ctx context.Context, ref string) (TemplateDetail, error) {
	var out TemplateDetail
	err := c.do(ctx, request{e2b: true, method: http.MethodGet, path: "/templates/" + url.PathEscape(ref), out: &out})
	return out, err
}

// TemplateTags lists the tags of a template of the team.
func (c *Client) TemplateTags(ctx context.Context, ref string) ([]TemplateTag, error) {
	var out []TemplateTag
	err := c.do(ctx, request{e2b: true, method: http.MethodGet, path: "/templates/" + url.PathEscape(ref) + "/tags", out: &out})
	return out, err
}

// PublishTemplate lets other teams of the server create sandboxes of a template,
// or not any more.
func (c *Client) PublishTemplate(ctx context.Context, ref string, public bool) error {
	return c.do(ctx, request{e2b: true, method: http.MethodPatch, path: "/v2/templates/" + url.PathEscape(ref), in: map[string]bool{"public": public}})
}
