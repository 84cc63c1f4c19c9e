package clitest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/client"
)

// stages answers a create that is watched.
func stages(w http.ResponseWriter, slow time.Duration, sb client.Sandbox) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i, name := range []string{"queued", "starting", "preparing", "ready"} {
		event(w, "stage", client.Stage{Name: name, At: time.Now(), MS: int64(i) * slow.Milliseconds()})
		time.Sleep(slow)
	}
	event(w, "sandbox", sb)
}

func event(w http.ResponseWriter, name string, v any) {
	data, _ := json.Marshal(v)
	fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
	_ = http.NewResponseController(w).Flush()
}

type batchBody struct {
	Concurrency, TimeoutSeconds int
	StopOnError                 bool
	Env, Metadata               map[string]string
	Items                       []client.BatchItem
}

// result is a result on the wire.
type result struct {
	ID       string         `json:"id"`
	Index    int            `json:"index"`
	Sandbox  string         `json:"sandbox"`
	ExitCode int            `json:"exitCode"`
	Status   string         `json:"status"`
	Stdout   string         `json:"stdout"`
	Stderr   string         `json:"stderr"`
	Files    []file         `json:"files,omitempty"`
	Error    map[string]any `json:"error,omitempty"`
}

type file struct {
	Path    string         `json:"path"`
	Content []byte         `json:"content"`
	Error   map[string]any `json:"error,omitempty"`
}

// batch runs items with the real agent, some at a time.
func (s *Stub) batch(w http.ResponseWriter, r *http.Request) {
	var body batchBody
	if !take(w, r, &body) {
		return
	}
	if body.Concurrency > 64 {
		reply(w, 400, map[string]any{"code": 400, "message": "concurrency: must be at most 64", "field": "concurrency", "limit": "limits.batch_concurrency"})
		return
	}
	c, err := client.New(s.URL, client.WithAPIKey(s.key))
	if err != nil {
		refuse(w, 500, err.Error())
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	var mu sync.Mutex // guards what follows
	sum := client.BatchSummary{Items: len(body.Items), Skipped: len(body.Items)}
	next := 0
	var workers sync.WaitGroup
	for range max(body.Concurrency, 1) {
		workers.Go(func() {
			for r.Context().Err() == nil {
				mu.Lock()
				i := next
				next++
				ended := i >= len(body.Items) || (body.StopOnError && sum.Failed > 0)
				mu.Unlock()
				if ended {
					return
				}
				res := s.item(r.Context(), c, body, i)
				mu.Lock()
				sum.Skipped--
				if res.ExitCode == 0 && res.Error == nil {
					sum.Succeeded++
				} else {
					sum.Failed++
				}
				event(w, "result", res)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	event(w, "summary", sum)
}

func (s *Stub) item(ctx context.Context, c *client.Client, body batchBody, i int) result {
	it := body.Items[i]
	res := result{ID: it.ID, Index: i, ExitCode: -1}
	sb, err := c.Create(ctx, client.CreateOptions{Env: body.Env, Metadata: body.Metadata, Timeout: time.Minute})
	if err != nil {
		res.Error = map[string]any{"code": 500, "message": err.Error()}
		return res
	}
	defer func() { _ = c.Kill(context.WithoutCancel(ctx), sb.ID) }()
	res.Sandbox = sb.ID
	a := c.Agent(sb)
	for _, f := range it.Files {
		if err := a.WriteFile(ctx, f.Path, strings.NewReader(string(f.Content)), int64(len(f.Content))); err != nil {
			res.Error = map[string]any{"code": 400, "message": err.Error()}
			return res
		}
	}
	cmd := client.Command{Path: it.Cmd, Args: it.Args, Env: it.Env, Dir: it.Dir, Stdin: it.Stdin != nil, Timeout: time.Duration(body.TimeoutSeconds) * time.Second}
	if it.Code != "" {
		cmd.Path = map[string]string{"python": "python3", "javascript": "node", "bash": "bash"}[it.Language]
		path := "/tmp/caisson-stub-" + rand.Text()
		_ = a.WriteFile(ctx, path, strings.NewReader(it.Code), int64(len(it.Code)))
		defer func() { _ = a.Remove(context.WithoutCancel(ctx), path) }()
		cmd.Args = append([]string{path}, it.Args...)
	}
	var stdout, stderr strings.Builder
	p, err := a.Start(ctx, cmd)
	if err == nil && it.Stdin != nil {
		err = p.SendAll(ctx, strings.NewReader(*it.Stdin))
	}
	var exit client.Exit
	if err == nil {
		exit, err = p.Wait(&stdout, &stderr)
	}
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	switch {
	case errors.Is(err, client.ErrTimeout):
		res.Error = map[string]any{"code": 504, "message": fmt.Sprintf("ran longer than its timeout of %s", cmd.Timeout), "errorCode": "timeout"}
		return res
	case err != nil:
		res.Error = map[string]any{"code": 500, "message": err.Error()}
		return res
	}
	res.ExitCode, res.Status = exit.Code, exit.Status
	for _, path := range it.Collect {
		f := file{Path: path}
		r, _, err := a.ReadFile(ctx, path)
		if err == nil {
			f.Content, err = io.ReadAll(r)
			_ = r.Close()
		}
		if err != nil {
			f.Error = map[string]any{"code": 400, "message": err.Error()}
		}
		res.Files = append(res.Files, f)
	}
	return res
}
