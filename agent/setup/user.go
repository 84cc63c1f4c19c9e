package setup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/caisson-dev/caisson/agent/account"
)

const (
	// firstID is where the ids of people begin.
	firstID = 1000
	lastID  = 60000
	// maxFile bounds the account files and the files of /etc/skel.
	maxFile = 8 << 20
)

// userName is what useradd of the common distributions takes.
var userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// User makes sure that there is a user.
type User struct {
	// Name is that of a user, or the number of one that exists.
	Name string `json:"name"`
	// Sudo lets the user become root without a password.
	Sudo bool `json:"sudo,omitempty"`
}

func (g Guest) user(r User) (Result, error) {
	var res Result
	u, err := g.accounts().Lookup(r.Name)
	if errors.Is(err, account.ErrUnknown) {
		if id, nerr := strconv.ParseUint(r.Name, 10, 32); nerr == nil {
			name := g.accounts().UserName(uint32(id))
			if name == r.Name {
				return res, refuse("there is no user with the number %s", r.Name)
			}
			r.Name = name
			u, err = g.accounts().Lookup(name)
		} else {
			res.Changed = true
			u, err = g.add(r.Name)
		}
	}
	if err != nil {
		return res, err
	}
	res.Name, res.Home = u.Name, u.Home
	if r.Sudo && u.UID != 0 {
		changed, err := g.sudo(u.Name)
		res.Changed = res.Changed || changed
		return res, err
	}
	return res, nil
}

// add makes a user with a group and a home of its own.
func (g Guest) add(name string) (account.User, error) {
	if !userName.MatchString(name) {
		return account.User{}, refuse("invalid username: '%s'", name)
	}
	passwd, err := g.read("etc/passwd")
	if err != nil {
		return account.User{}, err
	}
	group, err := g.read("etc/group")
	if err != nil {
		return account.User{}, err
	}
	id, err := freeID(passwd, group)
	if err != nil {
		return account.User{}, err
	}
	home := "/home/" + name
	if !hasLine(group, name) {
		if err := g.replace("etc/group", appendLine(group, fmt.Sprintf("%s:x:%d:", name, id)), 0o644); err != nil {
			return account.User{}, err
		}
	}
	if shadow, err := g.read("etc/shadow"); err == nil && len(shadow) > 0 && !hasLine(shadow, name) {
		if err := g.replace("etc/shadow", appendLine(shadow, name+":*:19000:0:99999:7:::"), 0o640); err != nil {
			return account.User{}, err
		}
	}
	// Last, so that the user is complete once it can be found.
	line := fmt.Sprintf("%s:x:%d:%d::%s:%s", name, id, id, home, g.shell())
	if err := g.replace("etc/passwd", appendLine(passwd, line), 0o644); err != nil {
		return account.User{}, err
	}
	u, err := g.accounts().Lookup(name)
	if err != nil {
		return u, err
	}
	return u, g.home(u)
}

func (g Guest) shell() string {
	if _, err := os.Stat(g.at("bin/bash")); err == nil {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// home makes the user's home from /etc/skel; one that exists is left alone.
func (g Guest) home(u account.User) error {
	if _, err := os.Lstat(g.at(u.Home)); err == nil {
		return nil
	}
	if _, err := g.mkdirAll(filepath.Dir(u.Home), account.User{}); err != nil {
		return err
	}
	if _, err := g.mkdirAll(u.Home, u); err != nil {
		return err
	}
	skel := g.at("etc/skel")
	return filepath.WalkDir(skel, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || path == skel {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(skel, path)
		if err != nil {
			return err
		}
		to := filepath.Join(u.Home, rel)
		switch {
		case d.IsDir():
			_, err := g.mkdirAll(to, u)
			return err
		// What runs at logout would run after every command that calls exit.
		case !d.Type().IsRegular() || d.Name() == ".bash_logout":
			return nil
		}
		b, err := g.read(filepath.Join("etc/skel", rel))
		if err != nil {
			return err
		}
		if err := os.WriteFile(g.at(to), b, 0o644); err != nil {
			return plain(err)
		}
		return own(g.at(to), u)
	})
}

// sudo lets a user become root, where there is sudo.
func (g Guest) sudo(name string) (changed bool, err error) {
	if fi, err := os.Stat(g.at("etc/sudoers.d")); err != nil || !fi.IsDir() {
		return false, nil
	}
	file := filepath.Join("etc/sudoers.d", name)
	text := name + " ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:" + name + " !use_pty, !requiretty, !lecture\n"
	old, err := g.read(file)
	if err != nil || string(old) == text {
		return false, err
	}
	return true, g.replace(file, []byte(text), 0o440)
}

// read returns a system file; a missing one is empty.
func (g Guest) read(name string) ([]byte, error) {
	fi, err := os.Stat(g.at(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, plain(err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, refuse("/%s is no file of at most %d bytes", name, maxFile)
	}
	b, err := os.ReadFile(g.at(name))
	return b, err
}

// replace writes a system file in one step, with the mode and the owner that it
// had.
func (g Guest) replace(name string, content []byte, mode fs.FileMode) error {
	path := g.at(name)
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	old, err := os.Stat(path)
	if err == nil {
		mode = old.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return plain(err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode))
	if old != nil {
		err = errors.Join(err, sameOwner(f, old))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func appendLine(file []byte, line string) []byte {
	if len(file) > 0 && !bytes.HasSuffix(file, []byte("\n")) {
		file = append(file, '\n')
	}
	return append(file, line+"\n"...)
}

func hasLine(file []byte, name string) bool {
	for line := range strings.Lines(string(file)) {
		if strings.HasPrefix(line, name+":") {
			return true
		}
	}
	return false
}

// freeID returns the first id that neither file uses.
func freeID(passwd, group []byte) (int, error) {
	used := map[string]bool{}
	for _, file := range [][]byte{passwd, group} {
		for line := range strings.Lines(string(file)) {
			if fields := strings.Split(line, ":"); len(fields) > 2 {
				used[strings.TrimSpace(fields[2])] = true
			}
		}
	}
	for id := firstID; id <= lastID; id++ {
		if !used[strconv.Itoa(id)] {
			return id, nil
		}
	}
	return 0, refuse("all user ids from %d to %d are in use", firstID, lastID)
}
