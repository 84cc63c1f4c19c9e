package storetest

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Postgres starts a PostgreSQL of its own on a socket in a temporary directory,
// stopped when the test ends, and returns a function that makes a fresh
// database in it. The test is skipped where PostgreSQL is not installed.
func Postgres(t *testing.T) (newDatabase func(t *testing.T) (dsn string)) {
	t.Helper()
	initdb, err := postgresTool("initdb")
	if err != nil {
		t.Skipf("PostgreSQL is not installed (Debian: apt-get install postgresql): %v", err)
	}
	ctl, err := postgresTool("pg_ctl")
	if err != nil {
		t.Skipf("PostgreSQL is not installed (Debian: apt-get install postgresql): %v", err)
	}
	// Not t.TempDir: the user postgres could not reach below it.
	dir, err := os.MkdirTemp("", "store-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var cred *syscall.Credential
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		cred, err = credential("postgres")
		if err != nil {
			t.Skipf("running as root and there is no user postgres: %v", err)
		}
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(tool string, args ...string) error {
		cmd := exec.Command(tool, args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", filepath.Base(tool), err, out)
		}
		return nil
	}
	data := filepath.Join(dir, "data")
	if err := run(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("-c listen_addresses='' -k %s -c fsync=off -c max_connections=200", dir)
	if err := run(ctl, "-D", data, "-w", "-l", filepath.Join(dir, "log"), "-o", opts, "start"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := run(ctl, "-D", data, "-w", "-m", "immediate", "stop"); err != nil {
			t.Error(err)
		}
	})
	dsn := func(database string) string {
		u := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {dir}, "user": {"postgres"}}.Encode()}
		return u.String()
	}
	admin, err := sql.Open("pgx", dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	names := make(chan int, 1)
	names <- 0
	return func(t *testing.T) string {
		t.Helper()
		n := <-names
		names <- n + 1
		name := fmt.Sprintf("test%d", n)
		if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		return dsn(name)
	}
}

func postgresTool(name string) (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err == nil && len(found) > 0 {
		return found[len(found)-1], nil
	}
	return exec.LookPath(name)
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
