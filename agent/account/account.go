// Package account knows the guest's users: lookup in /etc/passwd and
// /etc/group without cgo or name services, which user a request selects, and
// how a path in a request is meant. It imports nothing of the agent.
package account

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// ErrUnknown says that a name is no user of this guest.
var ErrUnknown = errors.New("unknown user")

// maxDatabase bounds what is read of /etc/passwd or /etc/group.
const maxDatabase = 8 << 20

// User is one line of the user database.
type User struct {
	Name string
	UID  uint32
	GID  uint32
	Home string
	// Groups are the supplementary groups, the primary one not among them.
	Groups []uint32
}

// Database is a cached view of passwd and group files; it is read again when a
// file changes. Safe for concurrent use.
type Database struct {
	passwd, group string

	mu         sync.Mutex // guards what follows
	passwdSeen stamp
	groupSeen  stamp
	users      map[string]User
	userNames  map[uint32]string
	groupNames map[uint32]string
}

type stamp struct {
	dev, ino      uint64
	size          int64
	mtime, change syscall.Timespec
}

// NewDatabase reads /etc/passwd and /etc/group when first asked.
func NewDatabase() *Database { return NewDatabaseFiles("/etc/passwd", "/etc/group") }

// NewDatabaseFiles is NewDatabase for other files.
func NewDatabaseFiles(passwd, group string) *Database {
	return &Database{passwd: passwd, group: group}
}

// Lookup returns the user called name, or an error that is ErrUnknown.
func (d *Database) Lookup(name string) (User, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	u, ok := d.users[name]
	if !ok {
		return User{}, fmt.Errorf("%w %q", ErrUnknown, name)
	}
	return u, nil
}

// UserName returns the name of uid, or the number when it has none.
func (d *Database) UserName(uid uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	return nameOr(d.userNames, uid)
}

// GroupName returns the name of gid, or the number when it has none.
func (d *Database) GroupName(gid uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	return nameOr(d.groupNames, gid)
}

func nameOr(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// refresh reads the files again if they changed. A missing or unreadable file
// counts as empty, except that root always exists. The caller holds mu.
func (d *Database) refresh() {
	passwdNow, groupNow := stampOf(d.passwd), stampOf(d.group)
	if d.users != nil && passwdNow == d.passwdSeen && groupNow == d.groupSeen {
		return
	}
	d.passwdSeen, d.groupSeen = passwdNow, groupNow
	d.users = map[string]User{"root": {Name: "root", Home: "/root"}}
	d.userNames = map[uint32]string{0: "root"}
	d.groupNames = map[uint32]string{0: "root"}

	seen := map[uint32]bool{}
	eachLine(d.passwd, 7, func(f []string) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || f[0] == "" {
			return
		}
		u := User{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5]}
		if u.Home == "" {
			u.Home = "/"
		}
		d.users[u.Name] = u
		if !seen[u.UID] {
			seen[u.UID] = true
			d.userNames[u.UID] = u.Name
		}
	})
	eachLine(d.group, 4, func(f []string) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || f[0] == "" {
			return
		}
		d.groupNames[uint32(gid)] = f[0]
		for member := range strings.SplitSeq(f[3], ",") {
			u, ok := d.users[member]
			if ok && u.GID != uint32(gid) && !slices.Contains(u.Groups, uint32(gid)) {
				u.Groups = append(u.Groups, uint32(gid))
				d.users[member] = u
			}
		}
	})
}

func stampOf(path string) stamp {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return stamp{}
	}
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, change: st.Ctim}
}

// eachLine calls yield with the colon-separated fields of every line that has
// at least n of them.
func eachLine(path string, n int, yield func(fields []string)) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxDatabase {
		return
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Split(s.Text(), ":"); len(fields) >= n {
			yield(fields)
		}
	}
}
