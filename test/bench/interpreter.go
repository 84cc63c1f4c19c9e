package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

const (
	interpreterTemplate = "code-interpreter-v1"
	interpreterPort     = 49999
)

// benchInterpreter measures code-interpreter-v1: new sandboxes until their first
// result from each tier of the pool, and results in one that runs.
func benchInterpreter(ctx context.Context, o options, r *report) error {
	r.section("Code interpreter", "Raw HTTP: create of `"+interpreterTemplate+"`, then `POST /execute` of `1+1` until the end of its stream. Its Python kernel runs in the saved memory that it starts from.")
	size, err := memoryImage(o.data)
	if err != nil {
		return err
	}
	r.table("a new sandbox", "create, median", "first result, median", "both, median", "p95")
	tiers := []struct {
		name, metric string
		least        int
		target       time.Duration
		env          []string
	}{
		{"from the hot pool", "caisson_pool_sandboxes", 3, 20 * time.Millisecond, []string{"CAISSON_POOL_TEMPLATES=" + interpreterTemplate + "=3"}},
		{"from a prebooted box", "caisson_pool_prebooted", 3, 150 * time.Millisecond, []string{"CAISSON_POOL_PREBOOTED=3"}},
		{"cold", "", 0, 300 * time.Millisecond, nil},
	}
	for _, tier := range tiers {
		s, err := benchServer(ctx, o, 0, tier.env...)
		if err != nil {
			return err
		}
		create, first, both, err := newInterpreters(ctx, s, max(o.rounds/3, 3), tier.metric, tier.least)
		s.Stop()
		if err != nil {
			return fmt.Errorf("%s: %w", tier.name, err)
		}
		r.row(tier.name, ms(create.median()), ms(first.median()), ms(both.median()), ms(both.quantile(.95)))
		r.check("create and first result, "+tier.name+", median", both.median() <= tier.target, ms(both.median())+" ms", "≤ "+ms(tier.target)+" ms")
	}
	r.check("saved memory of the template", size <= 120e6, fmt.Sprintf("%.0f MB", float64(size)/1e6), "≤ 120 MB")
	s, err := benchServer(ctx, o, 0)
	if err != nil {
		return err
	}
	defer s.Stop()
	if err := runningInterpreter(ctx, s, r); err != nil {
		return err
	}
	return benchTemplateBuild(ctx, s, r)
}

// newInterpreters makes sandboxes, with the pool full before each.
func newInterpreters(ctx context.Context, s *testenv.Server, n int, metric string, least int) (create, first, both sample, err error) {
	for i := range n + 1 {
		if metric != "" && i > 0 || metric == "caisson_pool_sandboxes" {
			if err := reached(ctx, s, metric, least); err != nil {
				return nil, nil, nil, err
			}
			time.Sleep(300 * time.Millisecond) // the machine is quiet again
		}
		start := time.Now()
		b, err := s.Create(ctx, map[string]any{"templateID": interpreterTemplate})
		if err != nil {
			return nil, nil, nil, err
		}
		created := time.Since(start)
		_, err = runCode(ctx, s, b, `{"code":"1+1"}`)
		done := time.Since(start)
		if err := errors.Join(err, s.Kill(ctx, b)); err != nil {
			return nil, nil, nil, err
		}
		if i > 0 { // the first one makes the server keep a tier
			create, first, both = append(create, created), append(first, done-created), append(both, done)
		}
	}
	return create, first, both, nil
}

// runCode executes a request and returns what came back.
func runCode(ctx context.Context, s *testenv.Server, b testenv.Box, request string) (string, error) {
	resp, err := s.Port(ctx, b, interpreterPort, "POST", "/execute", "application/json", strings.NewReader(request))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || !strings.Contains(string(body), `"2"`)) {
		err = fmt.Errorf("execute: %s: %.500s", resp.Status, body)
	}
	return string(body), err
}

// ownKernel times a kernel of the same kind from beside it, without server,
// network and interpreter: what a result costs at least.
const ownKernel = `
import time
from jupyter_client.manager import start_new_kernel
m, c = start_new_kernel(kernel_name="python3")
t = []
for i in range(110):
    a = time.perf_counter()
    asked = c.execute("1+1")
    while True:
        got = c.get_iopub_msg(timeout=30)
        if got["parent_header"].get("msg_id") == asked and got["content"].get("execution_state") == "idle":
            break
    t.append(time.perf_counter() - a)
t = sorted(t[10:])
print("%.2f" % (t[50] * 1e3))
m.shutdown_kernel(now=True)`

// runningInterpreter measures results in a context that is there, and twenty
// contexts in one sandbox.
func runningInterpreter(ctx context.Context, s *testenv.Server, r *report) error {
	b, err := s.Create(ctx, map[string]any{"templateID": interpreterTemplate, "timeout": 600})
	if err != nil {
		return err
	}
	var took sample
	for i := range 110 {
		start := time.Now()
		if _, err := runCode(ctx, s, b, `{"code":"1+1"}`); err != nil {
			return err
		}
		if i >= 10 {
			took = append(took, time.Since(start))
		}
	}
	res, err := s.Exec(ctx, b, "/usr/bin/python3", "-c", ownKernel)
	if err != nil {
		return err
	}
	var own float64
	if _, err := fmt.Sscan(res.Stdout, &own); err != nil {
		return fmt.Errorf("the kernel's own time: %w: %.500s", err, res.Stderr)
	}
	r.section("Code in a running context", "`1+1`, n=100, over raw HTTP; and the same asked of an ipykernel by a Jupyter client beside it in the sandbox.")
	r.table("what", "min", "median", "p95")
	r.row("`POST /execute`", ms(took.quantile(0)), ms(took.median()), ms(took.quantile(.95)))
	r.row("the kernel alone, through `jupyter_client`", "", fmt.Sprintf("%.1f", own), "")
	beyond := took.median() - time.Duration(own*float64(time.Millisecond))
	r.check("beyond the kernel's own time, median", beyond <= 6*time.Millisecond, fmt.Sprintf("%.1f ms", beyond.Seconds()*1e3), "≤ 6 ms")

	start := time.Now()
	for range 20 {
		resp, err := s.Port(ctx, b, interpreterPort, "POST", "/contexts", "application/json", strings.NewReader(`{"language":"python"}`))
		if err != nil {
			return err
		}
		var made struct{ ID string }
		err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&made)
		_ = resp.Body.Close()
		if err != nil {
			return fmt.Errorf("create context: %s: %w", resp.Status, err)
		}
		if _, err := runCode(ctx, s, b, fmt.Sprintf(`{"code":"1+1","context_id":%q}`, made.ID)); err != nil {
			return err
		}
	}
	r.row("20 more contexts, each made and asked once: one of them", "", ms(time.Since(start)/20), "")
	return s.Kill(ctx, b)
}

// benchTemplateBuild measures what a build takes beside its steps.
func benchTemplateBuild(ctx context.Context, s *testenv.Server, r *report) error {
	r.section("Template builds", "`caisson template build --no-cache` of three steps that do next to nothing, on `base`, until the command returns.")
	r.table("what", "median of 3")
	dir, err := os.MkdirTemp("", "caisson-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const steps = "name = \"bench\"\ntemplate = \"base\"\n%s\n[[steps]]\nrun = \"true\"\n[[steps]]\nenv = { A = \"b\" }\n[[steps]]\nrun = \"echo hi > /home/user/hi\"\n"
	for _, c := range []struct{ name, start string }{
		{"three steps", ""},
		{"three steps and a start command, with its memory saved", "start = \"python3 -m http.server 8000\"\nready = \"curl -fsS -o /dev/null http://localhost:8000\""},
	} {
		var took sample
		for range 3 {
			if err := os.WriteFile(filepath.Join(dir, "caisson.toml"), fmt.Appendf(nil, steps, c.start), 0o600); err != nil {
				return err
			}
			cmd := s.Command(ctx, "template", "build", "--no-cache")
			cmd.Dir = dir
			cmd.Env = append(cmd.Env, "CAISSON_API_URL="+s.URL, "CAISSON_API_KEY="+s.Key)
			start := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("build: %w\n%s", err, out)
			}
			took = append(took, time.Since(start))
		}
		r.row(c.name, fmt.Sprintf("%.1f s", took.median().Seconds()))
		if c.start == "" {
			r.check("build of three steps", took.median() <= 5*time.Second, fmt.Sprintf("%.1f s", took.median().Seconds()), "≤ 5 s and the steps' own time")
		}
	}
	return s.API(ctx, "DELETE", "/templates/bench", nil, nil)
}

// memoryImage is the size of what is saved in a data directory that has run no
// sandboxes: the memory of the stock templates.
func memoryImage(data string) (size int64, err error) {
	err = filepath.WalkDir(filepath.Join(data, "snapshots"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err == nil && size == 0 {
		err = fmt.Errorf("there is no saved memory in %s: run `caisson template build %s --data %s`", data, interpreterTemplate, data)
	}
	return size, err
}
