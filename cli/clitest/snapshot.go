package clitest

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/client"
)

// snapshotRoutes are snapshots and forks over maps; what is saved or copied is
// the record, not what runs.
func (s *Stub) snapshotRoutes(mux *http.ServeMux, v1 string) {
	mux.HandleFunc("POST "+v1+"/sandboxes/{id}/snapshots", s.one(func(w http.ResponseWriter, r *http.Request, b *box) {
		var body struct{ Name string }
		if take(w, r, &body) {
			s.save(w, b, body.Name)
		}
	}))
	mux.HandleFunc("GET "+v1+"/snapshots", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		of := r.URL.Query().Get("sandbox")
		all := []client.Snapshot{}
		for _, snap := range slices.Backward(s.snapshots) {
			if of == "" || of == snap.Sandbox {
				all = append(all, snap)
			}
		}
		reply(w, 200, all)
	})
	mux.HandleFunc("DELETE "+v1+"/snapshots/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		snap, ok := s.snapshot(r.PathValue("id"))
		if !ok {
			refuse(w, 404, "snapshot "+r.PathValue("id")+" doesn't exist")
			return
		}
		for _, b := range s.boxes {
			if b.sb.BuildID == snap.BuildID && b.sb.State == client.Running {
				refuse(w, 409, "snapshot is in use: end the sandboxes that were made of it first, paused ones too")
				return
			}
		}
		s.snapshots = slices.DeleteFunc(s.snapshots, func(x client.Snapshot) bool { return x.BuildID == snap.BuildID })
		w.WriteHeader(204)
	})
	mux.HandleFunc("POST "+v1+"/sandboxes/{id}/fork", s.fork)
}

func (s *Stub) save(w http.ResponseWriter, b *box, name string) {
	if name == "base" || strings.Contains(name, " ") {
		refuse(w, 400, "name: "+name+" cannot be")
		return
	}
	if b.sb.State != client.Running {
		refuse(w, 404, "sandbox "+b.sb.ID+" has ended")
		return
	}
	id := strings.ToLower(rand.Text()[:20])
	snap := client.Snapshot{
		ID: id + ":default", Name: name, Tag: "default", Template: id, BuildID: rand.Text(), Sandbox: b.sb.ID,
		Resources: b.sb.Resources, SizeBytes: 3 << 20, Engine: "stub", CreatedAt: time.Now(),
	}
	if name != "" {
		snap.ID = "default/" + name + ":default"
	}
	s.snapshots = slices.DeleteFunc(s.snapshots, func(x client.Snapshot) bool { return x.ID == snap.ID })
	s.snapshots = append(s.snapshots, snap)
	reply(w, 201, snap)
}

// snapshot finds one by id or name; s.mu is held.
func (s *Stub) snapshot(ref string) (client.Snapshot, bool) {
	for _, snap := range s.snapshots {
		if ref == snap.ID || (ref == snap.Name && ref != "") {
			return snap, true
		}
	}
	return client.Snapshot{}, false
}

func (s *Stub) fork(w http.ResponseWriter, r *http.Request) {
	var body struct{ Count, TimeoutSeconds int }
	if !take(w, r, &body) {
		return
	}
	s.mu.Lock()
	b := s.boxes[r.PathValue("id")]
	s.mu.Unlock()
	if b == nil {
		refuse(w, 404, "sandbox "+r.PathValue("id")+" was not found")
		return
	}
	if body.Count > 100 {
		refuse(w, 400, "count: must be 1 to 100")
		return
	}
	var made []client.Forked
	for i := range max(1, body.Count) {
		if i == 3 {
			made = append(made, client.Forked{Error: &client.ForkError{Code: 429, Message: "team default has 4 live sandboxes and the limit is 4"}})
			continue
		}
		sb, now := b.sb, time.Now()
		sb.ID, sb.AgentToken = "i"+strings.ToLower(rand.Text()[:20]), strings.ToLower(rand.Text())
		sb.CreatedAt, sb.StartedAt, sb.EndsAt = now, now, now.Add(time.Duration(body.TimeoutSeconds)*time.Second)
		sb.Name, sb.Origin = "", &client.Origin{Sandbox: b.sb.ID}
		child, err := s.start(sb, nil)
		if err != nil {
			refuse(w, 500, err.Error())
			return
		}
		s.mu.Lock()
		s.boxes[sb.ID] = child
		s.mu.Unlock()
		made = append(made, client.Forked{Sandbox: &sb})
	}
	reply(w, 201, made)
}
