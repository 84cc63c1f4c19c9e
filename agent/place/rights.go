package place

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

// Mode bits, as the last three of a file's.
const (
	search = 1
	write  = 2
	read   = 4
)

// bind adds the owner of a link to those whose rights count. Root's links, and
// those of the agent itself, say nothing that the agent would not.
func (p *Place) bind(uid uint32) {
	if uid == 0 || int(uid) == os.Geteuid() || slices.ContainsFunc(p.via, func(u account.User) bool { return u.UID == uid }) {
		return
	}
	name := p.w.accounts.UserName(uid)
	u, err := p.w.accounts.Lookup(name)
	if err != nil || u.UID != uid {
		// Without a name it has no groups that we know of, and no group at all
		// is not one that a file can have.
		u = account.User{Name: name, UID: uid, GID: ^uint32(0)}
	}
	p.via = append(p.via, u)
}

// allowed tells whether all owners of links have the rights want to the open
// file fd; the error is a *LinkError when one has not.
func (p *Place) allowed(fd int, want uint32) error {
	if len(p.via) == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	for _, u := range p.via {
		if !may(u, &st, want) {
			return &LinkError{u.Name}
		}
	}
	return nil
}

// removable tells whether all owners of links may remove or rename the entry
// with the attributes st, which in a sticky directory is its owner's right.
func (p *Place) removable(st *unix.Stat_t) error {
	if len(p.via) == 0 {
		return nil
	}
	if err := p.allowed(p.dir, search|write); err != nil {
		return err
	}
	var dir unix.Stat_t
	if err := unix.Fstat(p.dir, &dir); err != nil {
		return err
	}
	for _, u := range p.via {
		if dir.Mode&unix.S_ISVTX != 0 && dir.Uid != u.UID && st.Uid != u.UID {
			return &LinkError{u.Name}
		}
	}
	return nil
}

// owned reports whether st belongs to all owners of links; true without links.
func (p *Place) owned(st *unix.Stat_t) bool {
	return !slices.ContainsFunc(p.via, func(u account.User) bool { return u.UID != st.Uid })
}

// may judges by mode bits, which is all that there is: the guest's file systems
// have no access lists.
func may(u account.User, st *unix.Stat_t, want uint32) bool {
	bits := st.Mode
	switch {
	case u.UID == st.Uid:
		bits >>= 6
	case u.GID == st.Gid || slices.Contains(u.Groups, st.Gid):
		bits >>= 3
	}
	return bits&want == want
}
