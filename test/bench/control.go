package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/testenv"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"

	_ "modernc.org/sqlite"
)

// manyRows is how many ended sandboxes the database remembers, three audit
// events each.
const manyRows = 100_000

// open is a guard without a network behind it.
type open struct{ egress.Attachment }

func (open) Attach(context.Context, string, egress.Policy) (egress.Attachment, error) {
	return open{}, nil
}
func (open) Update(context.Context, string, egress.Policy) error { return nil }
func (open) Detach(context.Context, string) error                { return nil }

// oneTemplate knows one build and needs no images.
type oneTemplate struct {
	t template.Template
	b template.Build
}

func (o oneTemplate) Resolve(context.Context, identity.TeamID, string) (template.Template, template.Build, error) {
	return o.t, o.b, nil
}

func (o oneTemplate) Build(context.Context, template.BuildID) (template.Build, error) {
	return o.b, nil
}

// benchControl measures what the manager and SQLite cost, without sandboxes.
func benchControl(ctx context.Context, o options, _ *testenv.Server, r *report) error {
	r.section("Control plane", fmt.Sprintf("The sandbox manager on SQLite with the fake provider (boxes without isolation, in this process), one caller, n=%d: "+
		"with an empty database and with %d ended sandboxes and their audit events in it. The listing is the first page of running ones.", controlCalls, manyRows))
	r.table("rows", "create, median", "p95", "get, median", "list, median", "kill, median", "create and kill per second")
	dir, err := os.MkdirTemp("", "caisson-bench-control-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "caisson.db")
	few, err := controlRow(ctx, path, "0", r)
	if err != nil {
		return err
	}
	if err := fillDatabase(ctx, path); err != nil {
		return err
	}
	many, err := controlRow(ctx, path, fmt.Sprint(manyRows), r)
	if err != nil {
		return err
	}
	ratio := float64(many) / float64(few)
	r.check(fmt.Sprintf("create with %d rows against an empty database", manyRows), ratio <= 1.3, fmt.Sprintf("%.2f×", ratio), "≤ 1.3×")
	return nil
}

const controlCalls = 300

// controlRow measures one life of a manager.
func controlRow(ctx context.Context, path, rows string, r *report) (create time.Duration, err error) {
	m, db, err := controlPlane(ctx, path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(running) }()
	defer func() { stop(); <-done }()
	<-m.Recovered()

	who := identity.Principal{Team: identity.DefaultTeam, KeyID: "bench"}
	var creates, gets, lists, kills sample
	took := func(s *sample, f func() error) error {
		start := time.Now()
		err := f()
		*s = append(*s, time.Since(start))
		return err
	}
	for range controlCalls {
		var sb sandbox.Sandbox
		for _, step := range []struct {
			s *sample
			f func() error
		}{
			{&creates, func() (err error) {
				sb, err = m.Create(ctx, who, sandbox.CreateRequest{Template: "base", Timeout: time.Minute})
				return err
			}},
			{&gets, func() error { _, err := m.Get(ctx, who, sb.ID); return err }},
			{&lists, func() error {
				_, _, _, err := m.List(ctx, who, sandbox.Filter{States: []sandbox.State{sandbox.Running}, Limit: 100})
				return err
			}},
			{&kills, func() error { return m.Kill(ctx, who, sb.ID, "") }},
		} {
			if err := took(step.s, step.f); err != nil {
				return 0, err
			}
		}
	}
	var all time.Duration
	for i := range creates {
		all += creates[i] + kills[i]
	}
	r.row(rows, ms(creates.median()), ms(creates.quantile(.95)), fmt.Sprintf("%.2f", float64(gets.median().Microseconds())/1000),
		fmt.Sprintf("%.2f", float64(lists.median().Microseconds())/1000), ms(kills.median()), fmt.Sprintf("%.0f", controlCalls/all.Seconds()))
	return creates.median(), nil
}

func controlPlane(ctx context.Context, path string) (*sandbox.Manager, *store.Store, error) {
	log := slog.New(slog.DiscardHandler)
	db, err := store.Open(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	t := oneTemplate{
		template.Template{ID: "bench000000000000000", Team: identity.DefaultTeam, Names: []string{"base"}, Current: "0b8e5c1e-0000-4000-8000-000000000001"},
		template.Build{ID: "0b8e5c1e-0000-4000-8000-000000000001", Template: "bench000000000000000", Status: template.Ready},
	}
	if err := db.PutTemplate(ctx, t.t, t.b); err != nil {
		return nil, nil, err
	}
	limits := []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, sandbox.UnenforcedEgress}
	boxes, err := fake.New(fake.Config{Unenforced: limits, Log: log})
	if err != nil {
		return nil, nil, err
	}
	vault, err := snapshot.NewLocal(filepath.Join(filepath.Dir(path), "snapshots"))
	if err != nil {
		return nil, nil, err
	}
	m, err := sandbox.New(sandbox.Config{
		MaxTimeout: time.Hour, MaxPerTeam: 1000, Unenforced: limits, DefaultUser: "root",
		Defaults: provider.Resources{MemoryMiB: 512, CPUs: 1, DiskMiB: 1024, Processes: 64},
	}, sandbox.Deps{
		Store: db, Snapshots: db, Templates: t, Provider: boxes, Guard: open{}, Vault: vault,
		Policy: func(n sandbox.Network) (egress.Policy, error) {
			return egress.FromNetwork(egress.Network{AllowInternet: n.AllowInternet}, egress.Server{})
		},
		Seed: identity.NewSeed(), Log: log,
	})
	return m, db, err
}

// fillDatabase makes copies of an ended sandbox and its events.
func fillDatabase(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	like := func(table string, other map[string]string) (string, error) {
		rows, err := db.QueryContext(ctx, "SELECT name FROM pragma_table_info('"+table+"')")
		if err != nil {
			return "", err
		}
		defer rows.Close()
		var names, values []string
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return "", err
			}
			value := "t." + name
			if v, ok := other[name]; ok {
				value = v
			}
			names, values = append(names, name), append(values, value)
		}
		return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %%d) INSERT INTO %s (%s) SELECT %s FROM n, (SELECT * FROM %s LIMIT 1) t",
			table, strings.Join(names, ", "), strings.Join(values, ", "), table), rows.Err()
	}
	for _, x := range []struct {
		table string
		n     int
		other map[string]string
	}{
		{"sandboxes", manyRows, map[string]string{"id": "printf('old%017d', i)", "created_at": "t.created_at - i * 1000", "listed_at": "t.listed_at - i * 1000"}},
		{"audit_events", 3 * manyRows, map[string]string{"seq": "1000000 + i", "sandbox_id": "printf('old%017d', i / 3)"}},
	} {
		q, err := like(x.table, x.other)
		if err != nil {
			return err
		}
		if _, err := db.ExecContext(ctx, fmt.Sprintf(q, x.n)); err != nil {
			return fmt.Errorf("fill %s: %w", x.table, err)
		}
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("UPDATE counters SET value = %d WHERE name = 'audit'", 1_000_000+3*manyRows+1))
	return err
}
