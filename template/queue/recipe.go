package queue

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/template"
)

// Limits of a recipe.
const (
	maxSteps   = 1000
	maxRecipe  = 1 << 20 // as JSON, in bytes
	maxCommand = 32 << 10
	maxRef     = 512
)

// Recipe is what a build is started with. Exactly one of Image and Template is
// given.
type Recipe struct {
	// Image is an OCI image; Registry says how to log in, nil when no login is
	// needed.
	Image    string
	Registry *Registry
	// Template is a reference as the team means it.
	Template string
	Steps    []template.Step
	// Start and Ready are inherited from the template where they are empty.
	Start, Ready string
	// Force ignores every cache.
	Force bool
}

// Registry is a login.
type Registry struct {
	Username string
	Password secret.Value
}

// GCP is the login of a service account to Google's registries.
func GCP(serviceAccountJSON string) *Registry {
	return &Registry{Username: "_json_key", Password: secret.New(serviceAccountJSON)}
}

// kept is a recipe as it is sealed, with what its names meant when it was
// started.
type kept struct {
	Image    string           `json:"image,omitempty"`
	Username string           `json:"username,omitempty"`
	Password string           `json:"password,omitempty"`
	Base     template.BuildID `json:"base,omitempty"`
	// Imported says that the build's record has its files already: only its
	// commands are to be run.
	Imported bool            `json:"imported,omitempty"`
	Steps    []template.Step `json:"steps,omitempty"`
	Start    string          `json:"start,omitempty"`
	Ready    string          `json:"ready,omitempty"`
	Force    bool            `json:"force,omitempty"`
}

// sealKind is what recipes are sealed as.
const sealKind = "build-recipe/"

// check refuses what is not a recipe. What is one and cannot be carried out is
// found later, so that the build says which step is to blame.
func (r Recipe) check() error {
	switch {
	case (r.Image == "") == (r.Template == ""):
		return apierr.Field("fromImage", "exactly one of fromImage and fromTemplate must be given")
	case len(r.Image) > maxRef || strings.ContainsFunc(r.Image, func(c rune) bool { return c <= ' ' || c >= 0x7f }):
		return apierr.Field("fromImage", "%.200q is not the name of an image", r.Image)
	case r.Registry != nil && r.Image == "":
		return apierr.Field("fromImageRegistry", "goes with fromImage only")
	case len(r.Steps) > maxSteps:
		return apierr.Field("steps", "has %d members, the limit is %d", len(r.Steps), maxSteps)
	case len(r.Start) > maxCommand || strings.Contains(r.Start, "\x00"):
		return apierr.Field("startCmd", "is longer than %d bytes, or holds a NUL", maxCommand)
	case len(r.Ready) > maxCommand || strings.Contains(r.Ready, "\x00"):
		return apierr.Field("readyCmd", "is longer than %d bytes, or holds a NUL", maxCommand)
	}
	return nil
}

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CheckHash refuses what is not the hash of files.
func CheckHash(hash string) error {
	if !hashForm.MatchString(hash) {
		return apierr.Field("hash", "must be 64 digits of 0-9a-f")
	}
	return nil
}

// prepare makes a step what the Executor takes; the error blames the recipe.
func prepare(s template.Step) (template.Step, error) {
	bad := func(format string, args ...any) (template.Step, error) {
		return s, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	s.Type = strings.ToUpper(s.Type)
	for _, a := range s.Args {
		if strings.Contains(a, "\x00") {
			return bad("an argument of %s holds a NUL", s.Type)
		}
	}
	n := len(s.Args)
	switch s.Type {
	case "ADD", "COPY":
		s.Type = "COPY"
		if n < 2 || n > 4 {
			return bad("COPY takes a source, a destination, and at most a user and a mode; it has %d arguments", n)
		}
		if s.FilesHash == "" {
			return bad("COPY has no filesHash")
		}
		if !hashForm.MatchString(s.FilesHash) {
			return bad("the filesHash of COPY is not 64 digits of 0-9a-f")
		}
		for len(s.Args) < 4 {
			s.Args = append(s.Args[:len(s.Args):len(s.Args)], "")
		}
		if _, err := strconv.ParseUint(s.Args[3], 8, 12); s.Args[3] != "" && err != nil {
			return bad("the mode of COPY, %.20q, is not octal", s.Args[3])
		}
	case "RUN":
		if n < 1 || n > 2 || s.Args[0] == "" {
			return bad("RUN takes a command, and at most a user; it has %d arguments", n)
		}
	case "ENV", "ARG":
		if n == 0 || n%2 != 0 {
			return bad("%s takes names and values in turn; it has %d arguments", s.Type, n)
		}
		for i := 0; i < n; i += 2 {
			if s.Args[i] == "" || strings.Contains(s.Args[i], "=") {
				return bad("%.100q is not the name of a variable", s.Args[i])
			}
		}
	case "WORKDIR":
		if n != 1 || s.Args[0] == "" {
			return bad("WORKDIR takes a path; it has %d arguments", n)
		}
	case "USER":
		if n < 1 || n > 2 || s.Args[0] == "" {
			return bad("USER takes a name, and at most \"true\"; it has %d arguments", n)
		}
	default:
		return bad("there are no steps of type %.40q; there are COPY, ADD, RUN, ENV, ARG, WORKDIR and USER", s.Type)
	}
	return s, nil
}

// commands are the start and ready commands in force: those of the recipe, else
// those of the template below. A start without a way to tell that it is ready
// gets twenty seconds.
func commands(r Recipe, base *template.Build) (start, ready string) {
	start, ready = r.Start, r.Ready
	if base != nil {
		if start == "" {
			start = base.Start
		}
		if ready == "" {
			ready = base.Ready
		}
	}
	if start != "" && ready == "" {
		ready = "sleep 20"
	}
	return start, ready
}

// seal encodes a recipe for keeping.
func (q *Queue) seal(id template.BuildID, k kept) (string, error) {
	plain, err := json.Marshal(k)
	if err != nil {
		return "", fmt.Errorf("encode recipe: %w", err)
	}
	if len(plain) > maxRecipe {
		return "", apierr.New(apierr.ErrTooLarge, "the recipe has %d bytes, the limit is %d: upload large things as files", len(plain), maxRecipe)
	}
	return q.deps.Seed.Seal(sealKind, string(id), plain), nil
}

func (q *Queue) unseal(p template.Pending) (k kept, err error) {
	plain, err := q.deps.Seed.Unseal(sealKind, string(p.Build), p.Sealed)
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(plain, &k); err != nil {
		return k, fmt.Errorf("decode recipe: %w", err)
	}
	return k, nil
}
