package spawner

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/wire"
)

// What a scripted spawner does with a box of that id.
const (
	boxGood  = "good"  // starts it
	boxLast  = "last"  // starts it, says so and dies
	boxTorn  = "torn"  // starts it and dies without a word
	sleeping = "86399" // seconds; marks what the script starts
)

// script is a spawner.
func script() {
	f := os.NewFile(socketFD, "engine")
	c, err := net.FileConn(f)
	_ = f.Close() // or a box would hold it
	if err != nil {
		panic(err)
	}
	conn := wire.NewConn(c.(*net.UnixConn))
	for {
		m, _, err := conn.Receive()
		if err != nil {
			return
		}
		var req spawnRequest
		if err := json.Unmarshal(m.Body, &req); err != nil {
			panic(err)
		}
		cmd := exec.Command("/bin/sleep", sleeping)
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		if req.Create.ID != boxTorn {
			fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
			if err != nil {
				panic(err)
			}
			_ = conn.Send(wire.Message{ID: m.ID, Body: wire.Encode(spawnReply{PID: cmd.Process.Pid})}, os.NewFile(uintptr(fd), "pidfd"))
		}
		if req.Create.ID != boxGood {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
}

// offspring lists this process's children: all, and those the script started.
func offspring(t *testing.T) (all, boxes []int) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has ended
		}
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
			if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(args), sleeping) {
				boxes = append(boxes, pid)
			}
		}
	}
	return all, boxes
}

// However many spawners die at once: what they have announced lives and is
// known, what they have not is killed, and new spawners take over.
func TestSpawnersDieTogether(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	const spawners = 6
	p, err := NewPool(spawners, Options{}, slog.New(slog.DiscardHandler), func() []int { all, _ := offspring(t); return all })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// A call that meets a spawner just dying fails; the next one does not.
	spawn := func(id string) (s *Sentry, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for range 2 * spawners {
			if s, err = p.Spawn(ctx, wire.Create{ID: id}, "", new(cgroup.Group), nil); err == nil || id == boxTorn || ctx.Err() != nil {
				break
			}
		}
		return s, err
	}
	var mu sync.Mutex
	alive := map[int]*Sentry{}
	for range 4 {
		var wg sync.WaitGroup
		for i := range spawners {
			wg.Go(func() {
				id := []string{boxLast, boxTorn, boxGood}[i%3]
				s, err := spawn(id)
				if (err != nil) != (id == boxTorn) {
					t.Errorf("Spawn(%s) = %v", id, err)
				}
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					alive[s.PID] = s
				}
			})
		}
		wg.Wait()
		p.mu.Lock()
		for w := range p.workers {
			_ = w.cmd.Process.Kill()
		}
		p.mu.Unlock()
	}
	// The last spawners are replaced, too; each looks for orphans before.
	for range spawners {
		s, err := spawn(boxGood)
		if err != nil {
			t.Fatalf("Spawn() by a new spawner = %v", err)
		}
		alive[s.PID] = s
	}
	deadline := time.Now().Add(20 * time.Second)
	for unknown := 1; unknown > 0; {
		unknown = 0
		_, boxes := offspring(t)
		for _, pid := range boxes {
			if alive[pid] == nil {
				unknown++
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d orphans live", unknown)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for pid, s := range alive {
		if hasEnded(pid) && unix.Kill(pid, 0) != nil {
			t.Errorf("announced process %d was killed", pid)
		}
		_ = unix.PidfdSendSignal(int(s.PIDFD.Fd()), unix.SIGKILL, nil, 0)
		_ = s.PIDFD.Close()
	}
}
