package session_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/session"
)

func bound() (*session.Session, control.Init) {
	in := control.Init{
		AccessToken: "token", EnvVars: map[string]string{"K": "v"}, DefaultUser: "user", DefaultWorkdir: "/w",
		Limits: control.Limits{Processes: 7},
	}
	s := session.New(account.NewDatabase())
	s.Bind(in)
	return s, in
}

// A checkpoint must find no token and no variable; limits hold meanwhile.
func TestForget(t *testing.T) {
	t.Parallel()
	s, in := bound()
	if !s.Ready() || !s.TokenIs("token") || s.Env()["K"] != "v" {
		t.Fatal("not bound")
	}
	s.Forget()
	s.Forget() // again is the same
	if s.Ready() || s.TokenIs("token") || s.TokenIs("") || len(s.Env()) != 0 {
		t.Errorf("after Forget(): ready %v, token %q, variables %v", s.Ready(), s.Token(), s.Env())
	}
	if s.Limits() != in.Limits || s.Workdir() != "/w" {
		t.Errorf("limits %+v and directory %q did not stay", s.Limits(), s.Workdir())
	}
	in.AccessToken = "other"
	s.Bind(in)
	if !s.TokenIs("other") || s.TokenIs("token") || s.Env()["K"] != "v" {
		t.Error("not bound again")
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if session.New(account.NewDatabase()).Await(t.Context()) {
			t.Error("Await() before the first identity = true")
		}
		s, in := bound()
		if !s.Await(t.Context()) {
			t.Error("Await() with an identity = false")
		}
		s.Forget()
		got := make(chan bool)
		go func() { got <- s.Await(t.Context()) }()
		synctest.Wait()
		select {
		case ok := <-got:
			t.Fatalf("Await() = %v before the identity is bound again", ok)
		default:
		}
		s.Bind(in)
		if !<-got {
			t.Error("Await() = false after the identity was bound again")
		}
		s.Forget()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s.Await(ctx) {
			t.Error("Await() with an ended context = true")
		}
	})
}
