package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Environ is a process environment: "NAME=value" strings, the last of a name
// wins.
type Environ []string

// OSEnviron returns the environment of this process.
func OSEnviron() Environ { return os.Environ() }

// Lookup returns the value of a variable and whether it is set.
func (e Environ) Lookup(name string) (string, bool) {
	for _, kv := range slices.Backward(e) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// Source says where a value came from.
type Source struct {
	// Kind is default, file, environment or flag.
	Kind string `json:"kind"`
	// Where is the file and line, the variable, or the flag; empty for a
	// default.
	Where string `json:"where,omitempty"`
}

// String gives "default", or the place itself.
func (s Source) String() string {
	if s.Where == "" {
		return s.Kind
	}
	return s.Where
}

// Setting is one effective value as text, without secrets.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source Source `json:"source"`
}

// Flag is a value given on the command line for a key.
type Flag struct {
	// Name is the flag as typed, for example "--listen".
	Name  string
	Value string
}

// Inputs are the layers of a configuration, weakest first.
type Inputs struct {
	// File is the configuration file; it must exist when it is set. When it
	// is empty CAISSON_CONFIG and then the usual places are tried.
	File string
	Env  Environ
	// Flags by key.
	Flags map[string]Flag
}

// Loaded is a valid configuration and what is known about its making.
type Loaded struct {
	Config Config
	// File is the configuration file that was read, or empty.
	File string
	// Warnings are for people: variables that look like settings and are not.
	Warnings []string

	sources map[string]Source
}

// Load puts the layers together and validates the result. Errors are of class
// errdefs.ErrInvalidArgument, or errdefs.ErrNotFound for a file that is named
// and missing; each names the place and the key.
func Load(in Inputs) (*Loaded, error) {
	l := &Loaded{Config: Defaults(in.Env), sources: map[string]Source{}}
	keys := walk(reflect.TypeFor[Config](), "", nil)
	byName := make(map[string]Key, len(keys))
	for _, k := range keys {
		byName[k.Name] = k
	}
	var problems []error
	entries, path, err := readLayerFile(in)
	if err != nil {
		return nil, err
	}
	l.File = path
	for _, e := range entries {
		problems = append(problems, l.apply(byName, e))
	}
	for _, k := range keys {
		// An empty variable is as good as none: tools pass unset ones on so.
		if s, ok := in.Env.Lookup(k.Env); ok && s != "" {
			problems = append(problems, l.apply(byName, entry{key: k.Name, raw: textOf(s), from: Source{"environment", k.Env}}))
		}
	}
	for _, k := range keys {
		if f, ok := in.Flags[k.Name]; ok {
			problems = append(problems, l.apply(byName, entry{key: k.Name, raw: textOf(f.Value), from: Source{"flag", f.Name}}))
		}
	}
	l.Warnings = strayVariables(in.Env, keys)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	if l.Config.Data, err = filepath.Abs(l.Config.Data); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := l.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return l, nil
}

// entry is one value on its way into the struct.
type entry struct {
	key  string
	raw  raw
	from Source
}

func (l *Loaded) apply(byName map[string]Key, e entry) error {
	k, ok := byName[e.key]
	if !ok {
		return unknownKey(byName, e)
	}
	if err := assign(reflect.ValueOf(&l.Config).Elem().FieldByIndex(k.index), e.raw); err != nil {
		return fmt.Errorf("%s: %s: %w", e.from.Where, e.key, err)
	}
	l.sources[e.key] = e.from
	return nil
}

func unknownKey(byName map[string]Key, e entry) error {
	names := make([]string, 0, len(byName))
	for n := range byName {
		names = append(names, n)
	}
	slices.Sort(names)
	hint := "run \"caisson config --keys\" for the list"
	if near := nearest(e.key, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Errorf("%s: unknown key %q: %s", e.from.Where, e.key, hint)
}

// Source says where the value of a key came from.
func (l *Loaded) Source(key string) Source {
	if s, ok := l.sources[key]; ok {
		return s
	}
	return Source{Kind: "default"}
}

// Settings lists every effective value in the order of the struct; passwords
// in URLs are masked.
func (l *Loaded) Settings() []Setting {
	v := reflect.ValueOf(l.Config)
	var out []Setting
	for _, k := range walk(reflect.TypeFor[Config](), "", nil) {
		text := format(v.FieldByIndex(k.index))
		if k.Name == "database" {
			text = maskPassword(text)
		}
		out = append(out, Setting{Key: k.Name, Value: text, Source: l.Source(k.Name)})
	}
	return out
}

func maskPassword(s string) string {
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" {
		return "[redacted]"
	}
	q := u.Query()
	if q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

// clientVariables are read by Connect, not by Load.
var clientVariables = []string{"CAISSON_CONFIG", "CAISSON_API_URL", "CAISSON_API_KEY", "CAISSON_API_KEY_FILE"}

// testPrefix begins the variables of the tests, which are no settings.
const testPrefix = "CAISSON_TEST_"

// strayVariables warns of misspelt variables. They are not errors, because
// Kubernetes puts CAISSON_* variables of its own into Pods of a service with
// that name.
func strayVariables(env Environ, keys []Key) []string {
	known := slices.Clone(clientVariables)
	for _, k := range keys {
		known = append(known, k.Env)
	}
	var warnings []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "CAISSON_") || strings.HasPrefix(name, testPrefix) || strings.HasSuffix(kv, "=") || slices.Contains(known, name) {
			continue
		}
		if near := nearest(name, known); near != "" {
			warnings = append(warnings, fmt.Sprintf("environment variable %s is not a setting; did you mean %s?", name, near))
		}
	}
	return warnings
}

// readLayerFile finds and reads the configuration file; without one it
// returns nothing.
func readLayerFile(in Inputs) ([]entry, string, error) {
	path, named := in.File, in.File != ""
	if !named {
		path, named = in.Env.Lookup("CAISSON_CONFIG")
	}
	if named && path != "" {
		entries, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("%w: configuration file %s does not exist", errdefs.ErrNotFound, path)
		}
		return entries, path, err
	}
	for _, path := range usualFiles(in.Env) {
		entries, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return entries, path, err
	}
	return nil, "", nil
}

func usualFiles(env Environ) []string {
	var paths []string
	if os.Geteuid() != 0 {
		if dir, ok := env.Lookup("XDG_CONFIG_HOME"); ok && filepath.IsAbs(dir) {
			paths = append(paths, filepath.Join(dir, "caisson", "config.yaml"))
		} else if home, ok := env.Lookup("HOME"); ok && home != "" {
			paths = append(paths, filepath.Join(home, ".config", "caisson", "config.yaml"))
		}
	}
	return append(paths, "/etc/caisson/config.yaml")
}
