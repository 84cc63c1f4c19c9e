package store_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/containerd/errdefs"
)

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *store.Store { return storetest.SQLite(t) })
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	database := storetest.Postgres(t)
	t.Run("suite", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) *store.Store { return storetest.Open(t, database(t)) })
	})
	t.Run("schema", func(t *testing.T) { testSchema(t, "pgx", database(t)) })
}

func TestSchema(t *testing.T) {
	t.Parallel()
	testSchema(t, "sqlite", filepath.Join(t.TempDir(), "caisson.db"))
}

// testSchema opens a database again, as every start does, then pretends that a
// newer program migrated it.
func testSchema(t *testing.T, driver, dsn string) {
	t.Helper()
	for range 2 {
		s, err := store.Open(t.Context(), dsn)
		if err != nil {
			t.Fatalf("Open() = %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("Close() = %v", err)
		}
	}
	raw, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, $1)", true); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), dsn)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "9999") {
		t.Errorf("Open(newer schema) = %v, want failed precondition naming 9999", err)
	}
}

// A command and the server may open a fresh data directory together.
func TestOpenTogether(t *testing.T) {
	t.Parallel()
	for range 10 {
		path := filepath.Join(t.TempDir(), "caisson.db")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s, err := store.Open(t.Context(), path)
				if err != nil {
					t.Errorf("Open() = %v", err)
					return
				}
				if err := s.PutMeta(t.Context(), "x", "y"); err != nil {
					t.Errorf("PutMeta() = %v", err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("Close() = %v", err)
				}
			})
		}
		wg.Wait()
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, dsn := range map[string]string{
		"no directory":   filepath.Join(dir, "nosuch", "db"),
		"not a database": garbage,
		"bad url":        "postgres://user:sesame@host:notaport/db",
	} {
		_, err := store.Open(t.Context(), dsn)
		if err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: Open() = %v, want an error without the password", name, err)
		}
	}
}

func TestFileIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a ?#% name.db")
	storetest.Open(t, path)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(path + suffix)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", path+suffix, st.Mode(), err)
		}
	}
}

const crashEnv = "STORE_TEST_CRASH_WRITER"

// TestCrashWriter is the child of TestKillLosesNothing.
func TestCrashWriter(t *testing.T) {
	path := os.Getenv(crashEnv)
	if path == "" {
		t.Skip("only runs as the child of TestKillLosesNothing")
	}
	s := storetest.Open(t, path)
	for {
		sb := storetest.Sandbox()
		if err := s.Insert(t.Context(), sb, 0, storetest.Created()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Mutate(t.Context(), sb.ID, storetest.Become(sandbox.Running)); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("acknowledged %s\n", sb.ID)
	}
}

func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "caisson.db")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashWriter$", "-test.v")
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ids []sandbox.ID
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
			ids = append(ids, sandbox.ID(id))
		}
		if len(ids) == 100 {
			if err := cmd.Process.Kill(); err != nil { // and read what it still said
				t.Fatal(err)
			}
		}
	}
	cmd.Wait() //nolint:errcheck // it was killed
	if len(ids) < 100 {
		t.Fatalf("the writer ended after %d writes", len(ids))
	}
	s := storetest.Open(t, path)
	for _, id := range ids {
		if sb, err := s.Get(t.Context(), id); err != nil || sb.State != sandbox.Running {
			t.Errorf("acknowledged sandbox %s is %s, %v", id, sb.State, err)
		}
	}
}

func BenchmarkCreateTransactions(b *testing.B) {
	s := storetest.SQLite(b)
	for b.Loop() {
		sb := storetest.Sandbox()
		if err := s.Insert(b.Context(), sb, 1<<30, storetest.Created()); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Mutate(b.Context(), sb.ID, storetest.Become(sandbox.Running)); err != nil {
			b.Fatal(err)
		}
	}
}
