// Package setup is what a template build has a guest do to itself: users and
// directories made, uploaded archives unpacked. The agent's executable carries
// it as the command "setup", which a build starts as root in a sandbox of its
// own, so that nothing of a template is ever unpacked on the host. It trusts
// the build's requests and no archive.
package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/caisson-dev/caisson/agent/account"
)

// Command is the first argument of the agent's executable; a Request as JSON is
// the second and last.
const Command = "setup"

// Exit codes of the command. Its standard output is a Result on success, and its
// standard error the reason otherwise.
const (
	exitFailed = 1
	// ExitRefused is the exit code when the request or the archive is to blame.
	ExitRefused = 2
)

// ErrRefused says that the request or the archive is to blame; its text says
// what for.
var ErrRefused = errors.New("refused")

// refusal is an ErrRefused with a text of its own.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// Is makes it ErrRefused.
func (*refusal) Is(target error) bool { return target == ErrRefused }

func refuse(format string, args ...any) error {
	return &refusal{text: fmt.Sprintf(format, args...)}
}

// Request is one thing to do: the one field that is set.
type Request struct {
	User *User `json:"user,omitempty"`
	Dir  *Dir  `json:"dir,omitempty"`
	Copy *Copy `json:"copy,omitempty"`
}

// Result tells what was done.
type Result struct {
	// Changed says that the file system is not what it was.
	Changed bool `json:"changed"`
	// Name and Home are those of the user of a User request.
	Name string `json:"name,omitempty"`
	Home string `json:"home,omitempty"`
	// Files and Bytes are what a Copy request wrote.
	Files int   `json:"files,omitempty"`
	Bytes int64 `json:"bytes,omitempty"`
}

// Guest is the machine below Root, which is "/" except in tests.
type Guest struct{ Root string }

// Main runs the command with the arguments behind Command and returns its exit
// code.
func Main(args []string, in io.Reader, out, errs io.Writer) int {
	var r Request
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &r) != nil {
		fmt.Fprintln(errs, "usage: setup REQUEST")
		return ExitRefused
	}
	res, err := Guest{Root: "/"}.Do(r, in)
	if err == nil {
		err = json.NewEncoder(out).Encode(res)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrRefused):
		fmt.Fprintln(errs, err)
		return ExitRefused
	default:
		fmt.Fprintln(errs, err)
		return exitFailed
	}
}

// Do does what r asks for; in is the archive of a Copy request. What it did
// before an error stays done.
func (g Guest) Do(r Request, in io.Reader) (Result, error) {
	switch {
	case r.User != nil:
		return g.user(*r.User)
	case r.Dir != nil:
		return g.dir(*r.Dir)
	case r.Copy != nil:
		return g.copy(*r.Copy, in)
	}
	return Result{}, refuse("the request is empty")
}

func (g Guest) at(path string) string { return filepath.Join(g.Root, path) }

func (g Guest) accounts() *account.Database {
	return account.NewDatabaseFiles(g.at("etc/passwd"), g.at("etc/group"))
}

func (g Guest) lookup(name string) (account.User, error) {
	u, err := g.accounts().Lookup(name)
	if errors.Is(err, account.ErrUnknown) {
		return u, refuse("invalid username: '%s'", name)
	}
	return u, err
}

// owner returns what USER[:GROUP] means, with a group of its own only where that
// is named. Numbers need not be of anybody.
func (g Guest) owner(s string) (account.User, error) {
	name, group, grouped := strings.Cut(s, ":")
	u, err := g.lookup(name)
	if id, nerr := strconv.ParseUint(name, 10, 32); err != nil && nerr == nil {
		u, err = account.User{UID: uint32(id), GID: uint32(id)}, nil
		if known, kerr := g.accounts().Lookup(g.accounts().UserName(uint32(id))); kerr == nil {
			u = known
		}
	}
	if err != nil || !grouped {
		return u, err
	}
	id, err := strconv.ParseUint(group, 10, 32)
	if err == nil {
		u.GID = uint32(id)
		return u, nil
	}
	file, err := g.read("etc/group")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(file)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 || f[0] != group {
			continue
		}
		if id, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			u.GID = uint32(id)
			return u, nil
		}
	}
	return u, refuse("invalid group: '%s'", group)
}

// Dir makes a directory with its parents, where missing.
type Dir struct {
	Path string `json:"path"` // absolute
	// User owns what is made.
	User string `json:"user"`
}

func (g Guest) dir(d Dir) (Result, error) {
	if !filepath.IsAbs(d.Path) || strings.IndexByte(d.Path, 0) >= 0 {
		return Result{}, refuse("path %q is not absolute", d.Path)
	}
	u, err := g.lookup(d.User)
	if err != nil {
		return Result{}, err
	}
	changed, err := g.mkdirAll(filepath.Clean(d.Path), u)
	return Result{Changed: changed}, err
}

// mkdirAll makes path and its missing parents, owned by u. What is there stays.
func (g Guest) mkdirAll(path string, u account.User) (changed bool, err error) {
	fi, err := os.Stat(g.at(path))
	switch {
	case err == nil && fi.IsDir():
		return false, nil
	case err == nil:
		return false, refuse("%s is not a directory", path)
	case !errors.Is(err, os.ErrNotExist):
		return false, plain(err)
	case path == "/":
		return false, err
	}
	if _, err := g.mkdirAll(filepath.Dir(path), u); err != nil {
		return false, err
	}
	if err := os.Mkdir(g.at(path), 0o755); err != nil {
		return false, plain(err)
	}
	return true, own(g.at(path), u)
}

// plain makes what the guest's file system says a refusal: a full disk, a loop
// of links or a name that is too long are the build's own affair.
func plain(err error) error {
	if _, ok := errors.AsType[syscall.Errno](err); ok && !errors.Is(err, ErrRefused) {
		return refuse("%v", err)
	}
	return err
}

// own does nothing for tests that are not root.
func own(path string, u account.User) error {
	err := os.Lchown(path, int(u.UID), int(u.GID))
	if err != nil && os.Geteuid() != 0 {
		return nil
	}
	return err
}
