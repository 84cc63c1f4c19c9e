// Command toolbox is the guest half of the provider suite: small programs that
// use up a resource, listen, dial or keep state. One static binary, so that the
// suite needs no distribution.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: toolbox <command> [argument...]"))
	}
	commands := map[string]func(args []string) error{
		"echo": echo, "stderr": toStderr, "exit": exit, "cat": cat, "env": env, "flood": flood, "alloc": alloc,
		"fill": fill, "forks": forks, "cpus": cpus, "put": put, "get": get, "serve": serve, "dial": dial,
		"resolve": resolve, "udp": udp, "sleep": sleep, "hostname": hostname, "die": die, "kill": kill, "remove": remove,
	}
	run, ok := commands[os.Args[1]]
	if !ok {
		fail(fmt.Errorf("unknown command %q", os.Args[1]))
	}
	if err := run(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "toolbox:", err)
	os.Exit(1)
}

func arg(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

func number(args []string, i int) int {
	n, err := strconv.Atoi(arg(args, i))
	if err != nil {
		fail(err)
	}
	return n
}

func echo(args []string) error {
	_, err := fmt.Println(strings.Join(args, " "))
	return err
}

func hostname([]string) error {
	name, err := os.Hostname()
	if err == nil {
		_, err = fmt.Println(name)
	}
	return err
}

func toStderr(args []string) error {
	_, err := fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	return err
}

func exit(args []string) error {
	os.Exit(number(args, 0))
	return nil
}

func cat([]string) error {
	_, err := io.Copy(os.Stdout, os.Stdin)
	return err
}

func env(args []string) error {
	_, err := fmt.Println(os.Getenv(arg(args, 0)))
	return err
}

// flood writes MiB of output.
func flood(args []string) error {
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for range number(args, 0) {
		if _, err := os.Stdout.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// alloc touches MiB of memory and says so.
func alloc(args []string) error {
	var keep [][]byte
	for range number(args, 0) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(i) | 1
		}
		keep = append(keep, b)
	}
	_, err := fmt.Println("allocated", len(keep))
	return err
}

// fill writes a file of MiB and says how much fitted.
func fill(args []string) error {
	f, err := os.Create(arg(args, 0))
	if err != nil {
		return err
	}
	defer f.Close()
	block := bytes.Repeat([]byte("caisson!"), 1<<17)
	for n := range number(args, 1) {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				fmt.Println("full after", n)
				return nil
			}
			return err
		}
	}
	fmt.Println("wrote", number(args, 1))
	return f.Sync()
}

// forks starts processes until it may not, keeps them for a while, and says how
// many there were.
func forks(args []string) error {
	most, hold := number(args, 0), number(args, 1)
	started := 0
	for range most {
		if err := exec.Command("/proc/self/exe", "sleep", strconv.Itoa(hold)).Start(); err != nil {
			break
		}
		started++
	}
	fmt.Println("started", started)
	time.Sleep(time.Duration(hold) * time.Millisecond)
	return nil
}

func cpus([]string) error {
	_, err := fmt.Println(runtime.NumCPU())
	return err
}

func put(args []string) error { return os.WriteFile(arg(args, 0), []byte(arg(args, 1)), 0o644) }

func get(args []string) error {
	b, err := os.ReadFile(arg(args, 0))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}

// serve answers HTTP: a counter kept in memory, a large body, and an echo.
func serve(args []string) error {
	var count atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, count.Add(1)) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	l, err := net.Listen("tcp", arg(args, 0))
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return http.Serve(l, mux)
}

// dial connects, sends a line and prints what comes back.
func dial(args []string) error {
	c, err := net.DialTimeout("tcp", arg(args, 0), 5*time.Second)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			fmt.Println("refused")
			return nil
		}
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, arg(args, 1)); err != nil {
		return err
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_, err = io.Copy(os.Stdout, c)
	return err
}

func resolve(args []string) error {
	r := &net.Resolver{PreferGo: true}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := r.LookupIP(ctx, "ip4", arg(args, 0))
	if err != nil {
		fmt.Println("failed:", err)
		return nil
	}
	_, err = fmt.Println(ips)
	return err
}

func udp(args []string) error {
	c, err := net.Dial("udp", arg(args, 0))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("datagram"))
	return err
}

// sleep waits for milliseconds.
func sleep(args []string) error {
	time.Sleep(time.Duration(number(args, 0)) * time.Millisecond)
	return nil
}

func kill(args []string) error {
	return syscall.Kill(number(args, 0), syscall.Signal(number(args, 1)))
}

func remove(args []string) error { return os.Remove(arg(args, 0)) }

// die sends itself a signal.
func die(args []string) error {
	if err := syscall.Kill(os.Getpid(), syscall.Signal(number(args, 0))); err != nil {
		return err
	}
	select {}
}
