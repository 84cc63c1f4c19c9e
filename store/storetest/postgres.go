package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// ErrNoPostgres says that PostgreSQL is not installed, or cannot run here.
var ErrNoPostgres = errors.New("PostgreSQL is not installed (Debian: apt-get install postgresql)")

// Cluster is a PostgreSQL of the tests' own, on a socket in a temporary directory.
type Cluster struct {
	dir  string
	cred *syscall.Credential
	// admin is a connection that makes databases.
	admin *sql.DB
	made  atomic.Int64
}

// Postgres starts a Cluster, stopped when the test ends, and returns a function
// that makes a fresh database in it. The test is skipped where PostgreSQL is not
// installed.
func Postgres(t *testing.T) (newDatabase func(t *testing.T) (dsn string)) {
	t.Helper()
	c, err := StartPostgres()
	if errors.Is(err, ErrNoPostgres) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return func(t *testing.T) string {
		t.Helper()
		dsn, err := c.NewDatabase(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return dsn
	}
}

// StartPostgres starts a cluster; ErrNoPostgres. Data is not synced to disk.
func StartPostgres() (*Cluster, error) {
	c := &Cluster{}
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		cred, err := credential("postgres")
		if err != nil {
			return nil, fmt.Errorf("running as root, and there is no user postgres: %w: %w", err, ErrNoPostgres)
		}
		c.cred = cred
	}
	if _, err := postgresTool("initdb"); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrNoPostgres)
	}
	// Not t.TempDir: the user postgres could not reach below it.
	dir, err := os.MkdirTemp("", "store-postgres-")
	if err != nil {
		return nil, err
	}
	c.dir = dir
	if err := c.start(); err != nil {
		// One that did not answer in time runs on, in what is removed.
		if _, serr := os.Stat(filepath.Join(c.data(), "postmaster.pid")); serr == nil {
			err = errors.Join(err, c.run("pg_ctl", "-D", c.data(), "-w", "-m", "immediate", "stop"))
		}
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

func (c *Cluster) start() error {
	if c.cred != nil {
		if err := os.Chown(c.dir, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return err
		}
	}
	if err := c.run("initdb", "-D", c.data(), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"); err != nil {
		return err
	}
	opts := fmt.Sprintf("-c listen_addresses='' -k %s -c fsync=off -c max_connections=200", c.dir)
	if err := c.run("pg_ctl", "-D", c.data(), "-w", "-l", filepath.Join(c.dir, "log"), "-o", opts, "start"); err != nil {
		return err
	}
	var err error
	c.admin, err = sql.Open("pgx", c.dsn("postgres"))
	return err
}

// Stop ends the cluster and removes its files.
func (c *Cluster) Stop() error {
	return errors.Join(
		c.admin.Close(),
		c.run("pg_ctl", "-D", c.data(), "-w", "-m", "immediate", "stop"),
		os.RemoveAll(c.dir),
	)
}

// NewDatabase makes a database and returns its URL. It is empty, or a copy of
// the one with the URL like, which nobody may use meanwhile.
func (c *Cluster) NewDatabase(ctx context.Context, like string) (dsn string, err error) {
	name := fmt.Sprintf("test%d", c.made.Add(1))
	stmt := "CREATE DATABASE " + name
	if like != "" {
		u, err := url.Parse(like)
		if err != nil {
			return "", err
		}
		stmt += " TEMPLATE " + strings.TrimPrefix(u.Path, "/")
	}
	if _, err := c.admin.ExecContext(ctx, stmt); err != nil {
		return "", err
	}
	return c.dsn(name), nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

func (c *Cluster) dsn(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {c.dir}, "user": {"postgres"}}.Encode()}
	return u.String()
}

func (c *Cluster) run(tool string, args ...string) error {
	path, err := postgresTool(tool)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", tool, err, out)
	}
	return nil
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
