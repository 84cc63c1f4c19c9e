package clitest

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/client"
)

// builds are template builds that run nothing: RUN "exit N" fails, RUN "wait"
// lasts until it is cancelled.
type builds struct {
	all     map[string]*build
	uploads map[string]int64
	public  map[string]bool
}

type build struct {
	client.RegisteredBuild
	state  client.Build
	recipe client.Recipe
	at     time.Time
}

// buildRoutes are those of E2B's builds over maps.
func (s *Stub) buildRoutes(mux *http.ServeMux, v1 string) {
	s.builds = builds{map[string]*build{}, map[string]int64{}, map[string]bool{}}
	locked := func(f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			f(w, r)
		}
	}
	one := func(f func(http.ResponseWriter, *http.Request, *build)) http.HandlerFunc {
		return locked(func(w http.ResponseWriter, r *http.Request) {
			b := s.builds.all[r.PathValue("build")]
			if b == nil {
				refuse(w, 404, "no such build")
				return
			}
			f(w, r, b)
		})
	}
	mux.HandleFunc("POST /v3/templates", locked(s.registerBuild))
	mux.HandleFunc("GET /templates/{id}/files/{hash}", locked(func(w http.ResponseWriter, r *http.Request) {
		_, present := s.builds.uploads[r.PathValue("hash")]
		reply(w, 201, map[string]any{"present": present, "url": "http://elsewhere.example" + r.URL.Path + "?" + stubLink})
	}))
	mux.HandleFunc("PUT /templates/{id}/files/{hash}", locked(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if n != r.ContentLength || r.Header.Get("X-API-Key") != "" {
			refuse(w, 400, "an upload has a length and no key")
			return
		}
		s.builds.uploads[r.PathValue("hash")] = n
	}))
	mux.HandleFunc("POST /v2/templates/{id}/builds/{build}", one(s.startBuild))
	mux.HandleFunc("GET /templates/{id}/builds/{build}/status", one(func(w http.ResponseWriter, r *http.Request, b *build) {
		from, _ := strconv.Atoi(r.URL.Query().Get("logsOffset"))
		out := b.state
		out.Log = b.state.Log[min(from, len(b.state.Log)):]
		reply(w, 200, out)
	}))
	mux.HandleFunc("POST "+v1+"/templates/{id}/builds/{build}/cancel", one(func(w http.ResponseWriter, _ *http.Request, b *build) {
		b.state.Status, b.state.Reason = client.BuildFailed, &client.BuildReason{Message: "the build was cancelled"}
		w.WriteHeader(202)
	}))
	mux.HandleFunc("GET /templates/{id}", locked(s.template))
	mux.HandleFunc("PATCH /v2/templates/{id}", locked(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Public bool }
		if take(w, r, &body) {
			s.builds.public[r.PathValue("id")] = body.Public
			reply(w, 200, map[string]any{"names": []string{r.PathValue("id")}})
		}
	}))
	// One pattern cannot tell it from that of aliases; here nothing asks for those.
	mux.HandleFunc("GET /templates/{id}/tags", locked(func(w http.ResponseWriter, r *http.Request) {
		tags := []client.TemplateTag{}
		for _, b := range s.builds.all {
			if b.TemplateID == r.PathValue("id") && b.state.Status == client.BuildReady {
				for _, t := range b.Tags {
					tags = append(tags, client.TemplateTag{Tag: t, BuildID: b.BuildID, CreatedAt: b.at})
				}
			}
		}
		reply(w, 200, tags)
	}))
}

// stubLink is what makes an upload allowed.
const stubLink = "signature=stub"

func (s *Stub) registerBuild(w http.ResponseWriter, r *http.Request) {
	var body client.NewBuild
	if !take(w, r, &body) {
		return
	}
	if strings.Contains(body.Name, " ") {
		refuse(w, 400, "name: cannot be")
		return
	}
	if len(body.Tags) == 0 {
		body.Tags = []string{"default"}
	}
	b := &build{RegisteredBuild: client.RegisteredBuild{
		TemplateID: "t-" + body.Name, BuildID: strings.ToLower(rand.Text()), Names: []string{"default/" + body.Name}, Tags: body.Tags,
	}, at: time.Now()}
	b.state = client.Build{TemplateID: b.TemplateID, BuildID: b.BuildID, Status: client.BuildWaiting}
	s.builds.all[b.BuildID] = b
	reply(w, 202, b.RegisteredBuild)
}

func (s *Stub) startBuild(w http.ResponseWriter, r *http.Request, b *build) {
	if !take(w, r, &b.recipe) {
		return
	}
	w.WriteHeader(202)
	b.state.Status = client.BuildReady
	say := func(step, text string, done bool) {
		b.state.Log = append(b.state.Log, client.BuildLog{
			Time: time.Now(), Level: "info", Step: step, Message: text, Done: done, Cached: done && !b.recipe.Force, DurationMS: 1500,
		})
	}
	say("base", "[base] FROM "+b.recipe.FromImage+b.recipe.FromTemplate, false)
	for i, st := range b.recipe.Steps {
		step := strconv.Itoa(i + 1)
		say(step, fmt.Sprintf("[builder %s/%d] %s %s", step, len(b.recipe.Steps), st.Type, strings.Join(st.Args, " ")), false)
		fail := ""
		switch arg := st.Args[0]; {
		case strings.HasPrefix(arg, "exit "):
			say(step, "about to fail\x1b[2J", false)
			fail = "failed to run command '" + arg + "': " + arg
		case arg == "wait":
			b.state.Status = client.BuildBuilding
			return
		case st.Type == "COPY":
			if s.builds.uploads[st.FilesHash] == 0 {
				fail = "the files were not uploaded"
			}
		}
		if fail != "" {
			say(step, fail, false)
			b.state.Status = client.BuildFailed
			b.state.Reason = &client.BuildReason{Message: fail, Step: step, Log: b.state.Log[len(b.state.Log)-2:]}
			return
		}
		say(step, "", true)
	}
}

func (s *Stub) template(w http.ResponseWriter, r *http.Request) {
	t := client.TemplateDetail{CreatedAt: time.Now(), UpdatedAt: time.Now(), Public: s.builds.public[r.PathValue("id")]}
	for _, b := range s.builds.all {
		if "t-"+r.PathValue("id") == b.TemplateID {
			t.ID, t.Names = b.TemplateID, b.Names
			t.Builds = append(t.Builds, client.BuildSummary{ID: b.BuildID, Status: b.state.Status, CPUs: 2, MemoryMiB: 1024, CreatedAt: b.at})
		}
	}
	if t.ID == "" {
		refuse(w, 404, "template "+r.PathValue("id")+" does not exist")
		return
	}
	reply(w, 200, t)
}
