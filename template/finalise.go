package template

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/erofs"
)

// maxEtc bounds the system files that finalisation reads.
const maxEtc = 4 << 20

// fileTime is the time of every file that finalisation writes: the same input is
// to give the same image, and some tools refuse times before 1980.
//
//nolint:gochecknoglobals // a constant in all but syntax
var fileTime = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)

// Finalise makes a tree of files that of a sandbox: what the engine mounts on,
// the sandbox's network settings, and the user "user" with a home and, where
// there is sudo, the right to it.
func Finalise(w *erofs.Writer) error {
	if err := skeleton(w); err != nil {
		return err
	}
	return addUser(w)
}

// Mountable makes what the engine mounts on, where it is missing, and changes
// nothing else: for a tree that Finalise, or a build upon it, has made before.
func Mountable(w *erofs.Writer) error {
	for _, d := range mountPoints() {
		if w.Exists(d.path) {
			continue
		}
		if err := add(w, erofs.File{Path: d.path, Mode: d.mode | fs.ModeDir}); err != nil {
			return err
		}
	}
	return nil
}

func add(w *erofs.Writer, f erofs.File) error {
	if f.ModTime.IsZero() {
		f.ModTime = fileTime
	}
	return w.Add(f)
}

// mountPoint is a directory that a sandbox mounts things on or writes to.
type mountPoint struct {
	path string
	mode fs.FileMode
}

func mountPoints() []mountPoint {
	return []mountPoint{
		{"dev", 0o755},
		{"proc", 0o555},
		{"sys", 0o555},
		{"run", 0o755},
		{"etc", 0o755},
		{"home", 0o755},
		{".caisson", 0o755},
		{"tmp", 0o777 | fs.ModeSticky},
		{"var/tmp", 0o777 | fs.ModeSticky},
	}
}

// skeleton makes the mount points, and the files of the sandbox's network.
func skeleton(w *erofs.Writer) error {
	for _, d := range mountPoints() {
		// One that is a symbolic link to a directory, as /var/run may be, stays.
		if w.Exists(d.path) {
			if err := w.Chmod(d.path, d.mode|fs.ModeDir, 0, 0); err != nil {
				return err
			}
			continue
		}
		if err := add(w, erofs.File{Path: d.path, Mode: d.mode | fs.ModeDir}); err != nil {
			return err
		}
	}
	return addTexts(w, sandboxFiles())
}

func addTexts(w *erofs.Writer, files []textFile) error {
	for _, f := range files {
		if err := add(w, erofs.File{Path: f.path, Mode: f.mode, Data: []byte(f.text)}); err != nil {
			return err
		}
	}
	return nil
}

// addUser makes sure that the default user exists, with a home of its own from
// /etc/skel, the right to sudo, and the directories that the contract promises
// it may write to.
func addUser(w *erofs.Writer) error {
	uid, gid, err := accounts(w)
	if err != nil {
		return err
	}
	if err := home(w, uid, gid); err != nil {
		return err
	}
	if w.Exists("usr/bin/sudo") {
		err := add(w, erofs.File{Path: "etc/sudoers.d/" + userName, Mode: 0o440, Data: []byte(sudoersText)})
		if err != nil {
			return err
		}
	}
	if err := add(w, erofs.File{Path: "code", Mode: 0o777 | fs.ModeDir}); err != nil {
		return err
	}
	if !w.Exists("usr/local") {
		if err := add(w, erofs.File{Path: "usr/local", Mode: 0o777 | fs.ModeDir}); err != nil {
			return err
		}
	}
	return w.Walk("usr/local", func(_ string, e *erofs.Entry) error {
		if e.Mode.Type() == fs.ModeSymlink {
			return nil
		}
		e.Mode |= 0o222
		if e.Mode.IsDir() {
			e.Mode |= 0o777
		}
		return nil
	})
}

// accounts adds the user to the account files and returns its ids, or those it
// has already.
func accounts(w *erofs.Writer) (uid, gid uint32, err error) {
	passwd, err := readOptional(w, "etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	group, err := readOptional(w, "etc/group")
	if err != nil {
		return 0, 0, err
	}
	if line := findLine(passwd, userName); line != nil {
		if len(line) < 4 {
			return 0, 0, fmt.Errorf("etc/passwd: the line of %s is too short: %w", userName, errdefs.ErrInvalidArgument)
		}
		u, uerr := strconv.ParseUint(line[2], 10, 32)
		g, gerr := strconv.ParseUint(line[3], 10, 32)
		if err := errors.Join(uerr, gerr); err != nil {
			return 0, 0, fmt.Errorf("etc/passwd: ids of %s: %w: %w", userName, err, errdefs.ErrInvalidArgument)
		}
		return uint32(u), uint32(g), nil
	}
	if len(passwd) == 0 {
		passwd = []byte("root:x:0:0:root:/root:" + shell(w) + "\n")
	}
	if len(group) == 0 {
		group = []byte("root:x:0:\n")
	}
	id := freeID(passwd, group)
	passwd = appendLine(passwd, fmt.Sprintf("%s:x:%d:%d::%s:%s", userName, id, id, userHome, shell(w)))
	if findLine(group, userName) == nil {
		group = appendLine(group, fmt.Sprintf("%s:x:%d:", userName, id))
	}
	group = joinGroup(group, "sudo", userName)
	files := []textFile{{"etc/passwd", 0o644, string(passwd)}, {"etc/group", 0o644, string(group)}}
	if w.Exists("etc/shadow") {
		shadow, err := w.ReadFile("etc/shadow", maxEtc)
		if err != nil {
			return 0, 0, err
		}
		files = append(files, textFile{"etc/shadow", 0o640, string(appendLine(shadow, userName+":*:19000:0:99999:7:::"))})
	}
	if err := addTexts(w, files); err != nil {
		return 0, 0, err
	}
	// Debian lets the group shadow read the file.
	if line := findLine(group, "shadow"); len(line) > 2 && w.Exists("etc/shadow") {
		if g, err := strconv.ParseUint(line[2], 10, 32); err == nil {
			if err := w.Chmod("etc/shadow", 0o640, 0, uint32(g)); err != nil {
				return 0, 0, err
			}
		}
	}
	return id, id, nil
}

func readOptional(w *erofs.Writer, name string) ([]byte, error) {
	b, err := w.ReadFile(name, maxEtc)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return b, err
}

func shell(w *erofs.Writer) string {
	if w.Exists("bin/bash") {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// findLine returns the fields of the line whose first field is name.
func findLine(file []byte, name string) []string {
	for line := range strings.Lines(string(file)) {
		if fields := strings.Split(strings.TrimRight(line, "\n"), ":"); fields[0] == name {
			return fields
		}
	}
	return nil
}

func appendLine(file []byte, line string) []byte {
	if len(file) > 0 && !bytes.HasSuffix(file, []byte("\n")) {
		file = append(file, '\n')
	}
	return append(file, line+"\n"...)
}

// joinGroup adds a member to a group, if there is such a group.
func joinGroup(file []byte, group, member string) []byte {
	lines := strings.SplitAfter(string(file), "\n")
	for i, line := range lines {
		body, end := strings.CutSuffix(line, "\n")
		fields := strings.Split(body, ":")
		if fields[0] != group || len(fields) != 4 {
			continue
		}
		members := strings.FieldsFunc(fields[3], func(r rune) bool { return r == ',' })
		if !slices.Contains(members, member) {
			fields[3] = strings.Join(append(members, member), ",")
		}
		lines[i] = strings.Join(fields, ":")
		if end {
			lines[i] += "\n"
		}
	}
	return []byte(strings.Join(lines, ""))
}

// freeID returns the first id from userID on that neither file uses.
func freeID(passwd, group []byte) uint32 {
	used := map[string]bool{}
	for _, file := range [][]byte{passwd, group} {
		for line := range strings.Lines(string(file)) {
			if fields := strings.Split(line, ":"); len(fields) > 2 {
				used[strings.TrimSpace(fields[2])] = true
			}
		}
	}
	id := uint32(userID)
	for used[strconv.FormatUint(uint64(id), 10)] {
		id++
	}
	return id
}

// home makes the user's home from /etc/skel, keeping what is there.
func home(w *erofs.Writer, uid, gid uint32) error {
	if !w.Exists(userHome) {
		if err := add(w, erofs.File{Path: userHome, Mode: 0o755 | fs.ModeDir, UID: uid, GID: gid}); err != nil {
			return err
		}
	}
	if !w.Exists("etc/skel") {
		return nil
	}
	names, err := w.ReadDir("etc/skel")
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		// Bash would run it when a command of a login shell calls exit, and
		// Debian's forks.
		if name == ".bash_logout" || w.Exists(path.Join(userHome, name)) {
			continue
		}
		data, err := w.ReadFile(path.Join("etc/skel", name), maxEtc)
		if errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) {
			continue // not a regular file
		}
		if err != nil {
			return err
		}
		err = add(w, erofs.File{Path: path.Join(userHome, name), Mode: 0o644, UID: uid, GID: gid, Data: data})
		if err != nil {
			return err
		}
	}
	return nil
}
