// Package recipe reads what "caisson template build" builds: a Dockerfile or a
// caisson.toml, together with the files that its steps copy. It knows no server;
// package cli uploads and starts what it returns.
package recipe

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

// maxFile bounds a Dockerfile or caisson.toml, in bytes.
const maxFile = 1 << 20

// Spec is a recipe with all that belongs to it.
type Spec struct {
	Build  client.NewBuild
	Recipe client.Recipe
	// Titles say what each step is, in the words of the file.
	Titles []string
	// Sources are the files of COPY steps, by index.
	Sources map[int]Source
	// Notes are what the file says and has no meaning here.
	Notes []string
}

// Source is what a COPY step copies from.
type Source struct {
	// Pattern is a path or glob, relative to the directory of the recipe.
	Pattern, Dest string
	// Line of the file, for errors.
	Line int
}

// Options change how a file is read.
type Options struct {
	// Args are values of ARG instructions.
	Args map[string]string
}

// bad is an error about a line of a file.
func bad(file string, line int, format string, args ...any) error {
	where := file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", file, line)
	}
	return fmt.Errorf("%s: %s: %w", where, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// Load reads a file: caisson.toml syntax when its name ends in .toml, otherwise a
// Dockerfile. What is wrong with it is errdefs.ErrInvalidArgument, with its line.
func Load(path string, o Options) (Spec, error) {
	data, err := readBounded(path)
	if err != nil {
		return Spec{}, err
	}
	if strings.HasSuffix(path, ".toml") {
		return loadTOML(path, data, o)
	}
	return loadDockerfile(path, data, o)
}

func readBounded(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes: %w", path, maxFile, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(path)
}

// file is the form of caisson.toml.
type file struct {
	Name       string
	Tags       []string
	Template   string
	Image      string
	Dockerfile string
	CPUs       int
	Memory     string
	FreeDisk   string `toml:"free_disk"`
	Start      string
	Ready      string
	Steps      []step
}

// step is one member of steps: exactly one of Run, Copy, Env, Workdir and User.
type step struct {
	Run     string
	As      string // RUN's user
	Copy    string
	To      string
	Owner   string
	Mode    string
	Env     map[string]string
	Workdir string
	User    string
	Sudo    bool
	Force   bool
}

func loadTOML(path string, data []byte, o Options) (Spec, error) {
	var f file
	meta, err := toml.Decode(string(data), &f)
	if err != nil {
		return Spec{}, fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Spec{}, bad(path, 0, "unknown key %q", unknown[0].String())
	}
	s := Spec{Sources: map[int]Source{}}
	from := 0
	for _, v := range []string{f.Template, f.Image, f.Dockerfile} {
		if v != "" {
			from++
		}
	}
	if from != 1 {
		return s, bad(path, 0, "give exactly one of template, image and dockerfile")
	}
	if f.Dockerfile != "" {
		below := filepath.Join(filepath.Dir(path), f.Dockerfile)
		data, err := readBounded(below)
		if err != nil {
			return s, fmt.Errorf("%s: dockerfile: %w", path, err)
		}
		if s, err = loadDockerfile(below, data, o); err != nil {
			return s, err
		}
	}
	s.Build.Name, s.Build.Tags, s.Build.CPUs = f.Name, f.Tags, f.CPUs
	for _, v := range []struct {
		key, text string
		into      *int64
	}{{"memory", f.Memory, &s.Build.MemoryMiB}, {"free_disk", f.FreeDisk, &s.Build.FreeDiskMiB}} {
		var m config.MiB
		if v.text == "" {
			continue
		}
		if err := m.UnmarshalText([]byte(v.text)); err != nil {
			return s, bad(path, 0, "%s: %v", v.key, err)
		}
		*v.into = int64(m)
	}
	s.Recipe.FromTemplate = f.Template
	if f.Image != "" {
		s.Recipe.FromImage = f.Image
	}
	if f.Start != "" {
		s.Recipe.Start, s.Recipe.Ready = f.Start, f.Ready
	}
	if f.Ready != "" {
		s.Recipe.Ready = f.Ready
	}
	for i, st := range f.Steps {
		if err := s.addTOML(st); err != nil {
			return s, fmt.Errorf("%s: step %d: %w: %w", path, i+1, err, errdefs.ErrInvalidArgument)
		}
	}
	return s, nil
}

// addTOML appends one member of steps.
func (s *Spec) addTOML(st step) error {
	kinds := 0
	for _, set := range []bool{st.Run != "", st.Copy != "", len(st.Env) > 0, st.Workdir != "", st.User != ""} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("give exactly one of run, copy, env, workdir and user")
	}
	if st.As != "" && st.Run == "" || st.Sudo && st.User == "" || (st.To != "" || st.Owner != "" || st.Mode != "") && st.Copy == "" {
		return fmt.Errorf("as goes with run, sudo with user, and to, owner and mode with copy")
	}
	switch {
	case st.Run != "":
		args := []string{st.Run}
		if st.As != "" {
			args = append(args, st.As)
		}
		s.add("RUN "+oneLine(st.Run), "RUN", args...)
	case st.Copy != "":
		if st.To == "" {
			return fmt.Errorf("copy needs to")
		}
		s.copy(Source{Pattern: st.Copy, Dest: st.To}, st.Owner, st.Mode)
	case len(st.Env) > 0:
		var args []string
		for _, k := range slices.Sorted(maps.Keys(st.Env)) {
			args = append(args, k, st.Env[k])
		}
		s.add("ENV "+strings.Join(slices.Sorted(maps.Keys(st.Env)), " "), "ENV", args...)
	case st.Workdir != "":
		s.add("WORKDIR "+st.Workdir, "WORKDIR", st.Workdir)
	default:
		args := []string{st.User}
		if st.Sudo {
			args = append(args, "true")
		}
		s.add("USER "+st.User, "USER", args...)
	}
	s.Recipe.Steps[len(s.Recipe.Steps)-1].Force = st.Force
	return nil
}

// add appends a step.
func (s *Spec) add(title, kind string, args ...string) {
	s.Recipe.Steps = append(s.Recipe.Steps, client.RecipeStep{Type: kind, Args: args})
	s.Titles = append(s.Titles, title)
}

// copy appends a COPY.
func (s *Spec) copy(from Source, owner, mode string) {
	s.Sources[len(s.Recipe.Steps)] = from
	s.add("COPY "+from.Pattern+" "+from.Dest, "COPY", from.Pattern, from.Dest, owner, mode)
}

// oneLine is a command as a title shows it.
func oneLine(s string) string {
	line, rest, more := strings.Cut(strings.TrimSpace(s), "\n")
	if more && strings.TrimSpace(rest) != "" {
		line += " …"
	}
	return line
}
