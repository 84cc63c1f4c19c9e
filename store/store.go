// Package store keeps every noun's records in SQL: sandboxes, templates, keys,
// teams, the audit log and the egress log. It implements the Store interfaces
// that those packages declare. One set of queries (queries/, compiled by sqlc
// into gen/db) and one set of migrations serve SQLite, the default, and
// PostgreSQL. Only package server opens it.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/containerd/errdefs"
	"github.com/gofrs/flock"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"
)

const (
	sqliteReaders    = 4
	postgresPool     = 16
	busyTimeout      = 10 * time.Second
	lockRetry        = 10 * time.Millisecond
	conflictAttempts = 8
)

// Store is safe for concurrent use. On SQLite all writes share one connection,
// so they never meet each other's locks; reads have a pool of their own and see
// the last commit.
type Store struct {
	dialect dialect
	writer  *sql.DB
	reader  *sql.DB // the same as writer on PostgreSQL
	wq, rq  *db.Queries
	// meter may be nil; see MeterWith.
	meter  Unwritten
	events audit.Notifier
}

// Open opens and migrates the database that dsn names: a postgres:// URL, or a
// file path (with or without "sqlite:") for SQLite. The file is created with
// mode 0600; its directory must exist. A schema newer than this program knows
// is errdefs.ErrFailedPrecondition.
//
// A commit on SQLite is in the file and synced (WAL, synchronous=FULL) when a
// write returns: neither kill -9 nor a power cut loses an acknowledged write.
func Open(ctx context.Context, dsn string) (*Store, error) {
	s := &Store{}
	var err error
	if isPostgres(dsn) {
		err = s.openPostgres(dsn)
		if err == nil {
			err = s.prepare(ctx)
		}
	} else {
		err = s.openSQLite(ctx, strings.TrimPrefix(dsn, "sqlite:"))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func isPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

func (s *Store) openPostgres(dsn string) error {
	s.dialect = postgresDialect
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		// The driver's text may hold the password.
		return fmt.Errorf("open database: the postgres URL is malformed: %w", errdefs.ErrInvalidArgument)
	}
	pool.SetMaxOpenConns(postgresPool)
	pool.SetMaxIdleConns(postgresPool)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	s.writer, s.reader = pool, pool
	return nil
}

func (s *Store) openSQLite(ctx context.Context, path string) (err error) {
	s.dialect = sqliteDialect
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	// SQLite has no lock to hold over several migrations; processes that open a
	// fresh or an old database together take turns by this one.
	turn := flock.New(abs+".lock", flock.SetPermissions(0o600))
	if _, err := turn.TryLockContext(ctx, lockRetry); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() { err = errors.Join(err, turn.Unlock()) }()
	// SQLite gives the WAL the mode of the file. An existing file is not opened
	// here: closing it would drop the locks that this process has on it.
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("open database: %w", err)
	}
	open := func(conns int, params url.Values, pragmas ...string) (*sql.DB, error) {
		pragmas = append([]string{
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"foreign_keys(1)", "synchronous(FULL)", "temp_store(MEMORY)",
		}, pragmas...)
		params["_pragma"] = pragmas
		u := url.URL{Scheme: "file", Path: abs, RawQuery: params.Encode()}
		pool, err := sql.Open("sqlite", u.String())
		if err != nil {
			return nil, fmt.Errorf("open database: %w", err)
		}
		pool.SetMaxOpenConns(conns)
		pool.SetMaxIdleConns(conns)
		return pool, nil
	}
	// Immediate transactions take the write lock when they begin, where waiting
	// is possible; upgrading a read lock later could only fail.
	s.writer, err = open(1, url.Values{"_txlock": {"immediate"}}, "journal_mode(WAL)")
	if err != nil {
		return err
	}
	if s.reader, err = open(sqliteReaders, url.Values{}, "query_only(1)"); err != nil {
		return err
	}
	return s.prepare(ctx)
}

func (s *Store) prepare(ctx context.Context) error {
	if err := s.writer.PingContext(ctx); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if err := migrate(ctx, s.writer, s.dialect); err != nil {
		return err
	}
	var err error
	if s.wq, err = db.Prepare(ctx, s.writer); err != nil {
		return fmt.Errorf("prepare statements: %w", err)
	}
	s.rq = s.wq
	if s.reader != s.writer {
		if s.rq, err = db.Prepare(ctx, s.reader); err != nil {
			return fmt.Errorf("prepare statements: %w", err)
		}
	}
	_, err = s.EnsureTeam(ctx, identity.Team{ID: identity.DefaultTeam, Name: "default", CreatedAt: time.Now()})
	return err
}

// Close closes every connection.
func (s *Store) Close() error {
	var errs []error
	if s.reader != nil && s.reader != s.writer {
		errs = append(errs, s.reader.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	return errors.Join(errs...)
}

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if _, err := s.rq.ListTeams(ctx); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// errConflict aborts a transaction whose row changed under it.
var errConflict = errors.New("row changed meanwhile")

// write runs fn in one transaction and commits; on a conflict with another
// writer it starts over. fn must use q only and have no side effects.
func (s *Store) write(ctx context.Context, fn func(q *db.Queries) error) error {
	for attempt := 1; ; attempt++ {
		err := s.writeOnce(ctx, fn)
		if err == nil || attempt == conflictAttempts || !(errors.Is(err, errConflict) || s.dialect.retryable(err)) {
			if errors.Is(err, errConflict) {
				err = fmt.Errorf("%w: %w", err, errdefs.ErrConflict)
			}
			return s.dialect.classify(err)
		}
		select {
		case <-time.After(rand.N(time.Duration(attempt) * 5 * time.Millisecond)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) writeOnce(ctx context.Context, fn func(q *db.Queries) error) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(s.wq.WithTx(tx)); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return tx.Commit()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// found turns "no such row" into errdefs.ErrNotFound, naming what was looked
// for.
func found(err error, what, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s %q: %w", what, id, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read %s %q: %w", what, id, err)
	}
	return nil
}

// GetMeta returns installation metadata; errdefs.ErrNotFound when name was
// never put.
func (s *Store) GetMeta(ctx context.Context, name string) (string, error) {
	v, err := s.rq.GetMeta(ctx, name)
	return v, found(err, "metadata", name)
}

// PutMeta sets installation metadata.
func (s *Store) PutMeta(ctx context.Context, name, value string) error {
	return s.write(ctx, func(q *db.Queries) error {
		return q.PutMeta(ctx, db.PutMetaParams{Name: name, Value: value})
	})
}

// AddMeta sets installation metadata unless name has a value, and returns the
// value that stands: of several servers that start together one wins.
func (s *Store) AddMeta(ctx context.Context, name, value string) (string, error) {
	err := s.write(ctx, func(q *db.Queries) error {
		_, err := q.AddMeta(ctx, db.AddMetaParams{Name: name, Value: value})
		return err
	})
	if err != nil {
		return "", err
	}
	return s.GetMeta(ctx, name)
}
