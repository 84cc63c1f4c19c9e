package account

import (
	"errors"
	"path/filepath"
	"strings"
)

var (
	// ErrNUL says that a path holds a NUL byte.
	ErrNUL = errors.New("path contains a NUL byte")
	// ErrOtherHome says that a path begins with another user's home.
	ErrOtherHome = errors.New("paths of the form ~user are not supported")
)

// Resolve returns the absolute, lexically clean path that a request of user u
// means by path: empty is workdir, or the home when workdir is empty; a leading
// "~" or "~/" is the home; a relative path is taken from the home. Symbolic
// links are not looked at.
func Resolve(u User, workdir, path string) (string, error) {
	if strings.ContainsRune(path, 0) || strings.ContainsRune(workdir, 0) {
		return "", ErrNUL
	}
	home := u.Home
	if !filepath.IsAbs(home) {
		home = "/" + home
	}
	switch {
	case path == "" && workdir == "":
		return filepath.Clean(home), nil
	case path == "":
		path = workdir
	}
	if path[0] == '~' {
		if len(path) > 1 && path[1] != '/' {
			return "", ErrOtherHome
		}
		return filepath.Join(home, path[1:]), nil
	}
	if !filepath.IsAbs(path) {
		return filepath.Join(home, path), nil
	}
	return filepath.Clean(path), nil
}
