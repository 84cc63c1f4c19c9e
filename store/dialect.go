package store

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// dialect holds the few things in which the two engines differ.
type dialect struct {
	name  string
	goose goose.Dialect
	// advisory says that migrations need a lock held over all of them.
	advisory bool
}

var (
	sqliteDialect   = dialect{name: "sqlite", goose: goose.DialectSQLite3}
	postgresDialect = dialect{name: "postgres", goose: goose.DialectPostgres, advisory: true}
)

// retryable reports whether the transaction failed only because of another one.
func (dialect) retryable(err error) bool {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		code := e.Code() & 0xff
		return code == sqlite3.SQLITE_BUSY || code == sqlite3.SQLITE_LOCKED
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "40001" || e.Code == "40P01" // serialisation failure, deadlock
	}
	return false
}

// classify gives database errors that callers can act on a kind of errdefs.
func (dialect) classify(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch code := e.Code(); {
		case code == sqlite3.SQLITE_CONSTRAINT_UNIQUE, code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
			return fmt.Errorf("%w: %w", errdefs.ErrAlreadyExists, err)
		case code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
			return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
		case code&0xff == sqlite3.SQLITE_FULL:
			return fmt.Errorf("disk is full: %w: %w", errdefs.ErrUnavailable, err)
		case code&0xff == sqlite3.SQLITE_BUSY:
			return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
		}
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case "23505":
			return fmt.Errorf("%w: %w", errdefs.ErrAlreadyExists, err)
		case "23503":
			return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
		case "53100": // disk full
			return fmt.Errorf("disk is full: %w: %w", errdefs.ErrUnavailable, err)
		case "40001", "40P01":
			return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
		}
	}
	return err
}
