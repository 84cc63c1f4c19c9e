package template

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
)

const (
	// tailLines and tailLine bound what is kept of the build's output for errors.
	tailLines = 40
	tailLine  = 400
	// killGrace is how long mmdebstrap has to tidy up after a cancellation.
	killGrace = 10 * time.Second
)

// installTime is the time of every file that installation makes, and of those of
// packages that are newer, so that the same packages make the same image on
// every day. It lies after most packages, because some programs compare the
// times of files with what they noted when they were installed.
//
//nolint:gochecknoglobals // a constant in all but syntax
var installTime = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// systemPath goes before the caller's search path: what mmdebstrap starts, for
// each package anew, are to be the distribution's tar and Python and not what
// somebody put in front of them.
const systemPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// debootstrap is one run of mmdebstrap.
type debootstrap struct {
	tool     string
	args     []string
	sources  string
	tempDir  string
	progress func(Progress)
	grace    time.Duration // between SIGTERM and SIGKILL
}

// run starts mmdebstrap, hands its tar stream to use, and waits for it. All it
// started is dead when run returns. When both fail, the error of whoever failed
// first is returned.
func (d debootstrap) run(ctx context.Context, use func(io.Reader) error) error {
	// Ended by hand below: the whole process group must go, not its leader.
	cmd := exec.Command(d.tool, d.args...) //nolint:noctx // see the comment above
	cmd.Env = append(cmd.Environ(), "PATH="+systemPath+":"+os.Getenv("PATH"), "LC_ALL=C.UTF-8", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive", "TMPDIR="+d.tempDir,
		"SOURCE_DATE_EPOCH="+strconv.FormatInt(installTime.Unix(), 10))
	cmd.Stdin = strings.NewReader(d.sources)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start mmdebstrap: %w", err)
	}
	log := &buildLog{progress: d.progress}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start mmdebstrap: %w", err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.endGroup(ctx, cmd.Process.Pid, ended) })
	useErr := use(stdout)
	if useErr != nil {
		if errdefs.IsInvalidArgument(useErr) {
			// Perhaps a stream cut short because mmdebstrap failed: let it say.
			_, _ = io.Copy(io.Discard, stdout)
		} else {
			signalGroup(cmd.Process.Pid, syscall.SIGTERM)
		}
	}
	waitErr := cmd.Wait()
	// Whatever outlived the leader.
	signalGroup(cmd.Process.Pid, syscall.SIGKILL)
	close(ended)
	wg.Wait()
	log.Close()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case useErr != nil && !errdefs.IsInvalidArgument(useErr):
		return useErr
	case waitErr != nil:
		return log.explain(waitErr)
	}
	return useErr
}

// endGroup ends a process group when ctx does, first gently.
func (d debootstrap) endGroup(ctx context.Context, pgid int, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	signalGroup(pgid, syscall.SIGTERM)
	t := time.NewTimer(d.grace)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		signalGroup(pgid, syscall.SIGKILL)
	}
}

func signalGroup(pgid int, sig syscall.Signal) {
	// The only error is that nobody is left.
	_ = syscall.Kill(-pgid, sig)
}

// buildLog reads mmdebstrap's and apt's output line by line, turns it into
// progress, and keeps the end of it.
type buildLog struct {
	progress func(Progress)
	partial  []byte
	tail     []string
	stage    Stage
	packages int64 // to be installed, as far as apt has said
	fetched  int64
	ready    int64
}

// Write implements io.Writer.
func (b *buildLog) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == '\n' || c == '\r':
			b.line(string(b.partial))
			b.partial = b.partial[:0]
		case len(b.partial) < tailLine:
			b.partial = append(b.partial, c)
		}
	}
	return len(p), nil
}

// Close takes a last line without an end.
func (b *buildLog) Close() {
	b.line(string(b.partial))
	b.partial = nil
}

var newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)

func (b *buildLog) line(raw string) {
	line := strings.TrimSpace(redact(strings.Map(printable, raw)))
	if line == "" {
		return
	}
	b.tail = append(b.tail, line)
	if len(b.tail) > tailLines {
		b.tail = b.tail[1:]
	}
	done, total := int64(0), b.packages
	switch {
	case strings.HasPrefix(line, "I: running apt-get update"):
		b.stage, total = StageResolve, 0
	case newlyInstalled.MatchString(line):
		n, _ := strconv.ParseInt(newlyInstalled.FindStringSubmatch(line)[1], 10, 32)
		b.packages += n
		b.stage, done, total = StageDownload, b.fetched, b.packages
	case strings.HasPrefix(line, "Get:") && b.packages > 0:
		b.fetched++
		b.stage, done = StageDownload, b.fetched
	case strings.HasPrefix(line, "Setting up "):
		b.ready++
		b.stage, done = StageInstall, b.ready
	case strings.HasPrefix(line, "Unpacking "):
		b.stage, done = StageInstall, b.ready
	case strings.HasPrefix(line, "I: creating tarball"):
		b.stage, total = StageWrite, 0
	case b.stage == "":
		b.stage, total = StageResolve, 0
	case b.stage == StageDownload:
		done = b.fetched
	case b.stage == StageInstall:
		done = b.ready
	default:
		total = 0
	}
	b.progress(Progress{Stage: b.stage, Done: min(done, total), Total: total, Line: line})
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}

// explain turns a failed run into an error that names cause and next step.
func (b *buildLog) explain(err error) error {
	text := strings.Join(b.tail, "\n")
	kind, hint := errdefs.ErrInternal, "see the output below"
	for _, c := range []struct {
		marks []string
		kind  error
		hint  string
	}{
		{
			[]string{"No space left on device"},
			errdefs.ErrResourceExhausted,
			"the disk of the directory for temporary files is full: free some, or set TMPDIR to another one",
		},
		{
			[]string{"NO_PUBKEY", "is not signed", "EXPKEYSIG", "no installed keyring"},
			errdefs.ErrFailedPrecondition,
			"the mirror's signature cannot be checked: install or renew the package debian-archive-keyring",
		},
		{
			[]string{"Unable to locate package", "has no installation candidate"},
			errdefs.ErrInvalidArgument,
			"a package of the recipe is not in the suite",
		},
		{
			[]string{
				"Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect", "Connection failed",
				"Connection timed out", "Connection refused", "Failed to fetch", "does not have a Release file", "Cannot initiate the connection",
			},
			errdefs.ErrUnavailable,
			"the package mirror cannot be reached: check the network, the host's apt sources and proxy, or name a mirror",
		},
		{
			[]string{"unable to pick chroot mode", "cannot create a user namespace", "newuidmap", "Operation not permitted"},
			errdefs.ErrFailedPrecondition,
			"mmdebstrap cannot make a root here: run as root, or install the package uidmap and allow user namespaces",
		},
	} {
		for _, mark := range c.marks {
			if strings.Contains(text, mark) {
				return fmt.Errorf("build from Debian packages: %s: %w: %w\n%s", c.hint, err, c.kind, text)
			}
		}
	}
	return fmt.Errorf("build from Debian packages: %s: %w: %w\n%s", hint, err, kind, text)
}

// countReads calls each with the running total of what is read from r.
func countReads(r io.Reader, each func(total int64)) io.Reader {
	return &countingReader{r: bufio.NewReaderSize(r, 1<<20), each: each}
}

type countingReader struct {
	r    io.Reader
	n    int64
	each func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.each(c.n)
	return n, err
}
