package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key describes one setting.
type Key struct {
	// Name is the key as written in the file, parts joined by dots.
	Name string
	// Env is the name of its environment variable.
	Env string
	// Type is a word for users: string, bool, integer, size, duration, list
	// or map.
	Type string
	// Default is the default as text.
	Default string
	Doc     string

	index []int
}

// Keys lists every setting in the order of the struct. Defaults are those of
// root.
func Keys() []Key {
	def := Defaults(nil)
	def.Data = "/var/lib/caisson"
	keys := walk(reflect.TypeFor[Config](), "", nil)
	v := reflect.ValueOf(def)
	for i := range keys {
		keys[i].Default = format(v.FieldByIndex(keys[i].index))
	}
	return keys
}

func walk(t reflect.Type, prefix string, index []int) []Key {
	var keys []Key
	for f := range t.Fields() {
		name := prefix + f.Tag.Get("key")
		at := append(slices.Clone(index), f.Index...)
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, walk(f.Type, name+".", at)...)
			continue
		}
		keys = append(keys, Key{
			Name:  name,
			Env:   "CAISSON_" + strings.ToUpper(strings.ReplaceAll(name, ".", "_")),
			Type:  typeWord(f.Type),
			Doc:   f.Tag.Get("doc"),
			index: at,
		})
	}
	return keys
}

func typeWord(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[MiB](), reflect.TypeFor[Bytes]():
		return "size"
	case reflect.TypeFor[time.Duration]():
		return "duration"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map"
	}
	return "string"
}

// raw is one value before it has a type. Exactly one field is set; list and
// pairs only come from a file.
type raw struct {
	text  *string
	list  []string
	pairs map[string]string
}

func textOf(s string) raw { return raw{text: &s} }

// assign parses r into dst.
func assign(dst reflect.Value, r raw) error {
	switch dst.Kind() {
	case reflect.Slice:
		list, err := r.asList()
		if err != nil {
			return err
		}
		dst.Set(reflect.ValueOf(list))
		return nil
	case reflect.Map:
		pairs, err := r.asPairs()
		if err != nil {
			return err
		}
		dst.Set(reflect.ValueOf(pairs))
		return nil
	}
	if r.text == nil {
		return fmt.Errorf("expected one value (%s), found a list or map", typeWord(dst.Type()))
	}
	return assignScalar(dst, *r.text)
}

func assignScalar(dst reflect.Value, s string) error {
	if u, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(s))
	}
	if dst.Type() == reflect.TypeFor[time.Duration]() {
		d, err := parseDuration(s)
		if err != nil {
			return err
		}
		dst.SetInt(int64(d))
		return nil
	}
	switch dst.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		dst.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is not a whole number of 0 or more", s)
		}
		dst.SetInt(n)
	case reflect.String:
		dst.SetString(s)
	default:
		panic("config: no parser for " + dst.Type().String())
	}
	return nil
}

func (r raw) asList() ([]string, error) {
	switch {
	case r.pairs != nil:
		return nil, fmt.Errorf("expected a list, found a map")
	case r.text == nil:
		return r.list, nil
	}
	var list []string
	for part := range strings.SplitSeq(*r.text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list, nil
}

func (r raw) asPairs() (map[string]string, error) {
	if r.pairs != nil {
		return r.pairs, nil
	}
	list, err := r.asList()
	if err != nil {
		return nil, err
	}
	pairs := make(map[string]string, len(list))
	for _, item := range list {
		k, v, ok := strings.Cut(item, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is not of the form name=value", item)
		}
		pairs[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	return pairs, nil
}

// format is the inverse of assign for text.
func format(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	case []string:
		return strings.Join(x, ",")
	case map[string]string:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(x)) {
			parts = append(parts, k+"="+x[k])
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v.Interface())
}

// nearest returns the candidate closest to name, or "" when none is close.
func nearest(name string, candidates []string) string {
	best, bestAt := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if d := distance(name, c); d < bestAt {
			best, bestAt = c, d
		}
	}
	return best
}

// distance is the number of single-byte edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
