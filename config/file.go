package config

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// readFile parses a YAML file into entries, each with its line.
func readFile(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: configuration file %s is larger than 1 MiB", errdefs.ErrInvalidArgument, path)
	}
	return parseFile(path, data)
}

func parseFile(path string, data []byte) ([]entry, error) {
	doc, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", errdefs.ErrInvalidArgument, path, yaml.FormatError(err, false, false))
	}
	if len(doc.Docs) > 1 {
		return nil, fmt.Errorf("%w: %s: more than one YAML document", errdefs.ErrInvalidArgument, path)
	}
	w := walker{path: path, leaves: map[string]bool{}}
	for _, k := range Keys() {
		w.leaves[k.Name] = true
	}
	for _, d := range doc.Docs {
		if err := w.node("", d.Body); err != nil {
			return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	return w.entries, nil
}

// walker flattens a YAML tree down to known leaves; whatever is not a section
// becomes an entry, so that unknown names are reported with their line.
type walker struct {
	path    string
	leaves  map[string]bool
	entries []entry
}

func (w *walker) where(n ast.Node) string {
	return fmt.Sprintf("%s:%d", w.path, n.GetToken().Position.Line)
}

func (w *walker) section(key string) bool {
	for leaf := range w.leaves {
		if strings.HasPrefix(leaf, key+".") {
			return true
		}
	}
	return false
}

// node visits a section.
func (w *walker) node(prefix string, n ast.Node) error {
	switch n := n.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return nil
	case *ast.MappingNode:
		for _, v := range n.Values {
			if err := w.pair(prefix, v); err != nil {
				return err
			}
		}
		return nil
	case *ast.MappingValueNode:
		return w.pair(prefix, n)
	}
	return fmt.Errorf("%s: expected keys and values", w.where(n))
}

func (w *walker) pair(prefix string, n *ast.MappingValueNode) error {
	name, err := w.scalar(n.Key)
	if err != nil {
		return err
	}
	key := prefix + name
	if w.section(key) {
		return w.node(key+".", n.Value)
	}
	if _, null := n.Value.(*ast.NullNode); null && w.leaves[key] {
		return nil
	}
	r := raw{}
	if w.leaves[key] {
		if r, err = w.value(n.Value); err != nil {
			return fmt.Errorf("%w (key %s)", err, key)
		}
	}
	w.entries = append(w.entries, entry{key: key, raw: r, from: Source{"file", w.where(n.Key)}})
	return nil
}

func (w *walker) value(n ast.Node) (raw, error) {
	switch n := n.(type) {
	case *ast.SequenceNode:
		r := raw{list: []string{}}
		for _, item := range n.Values {
			s, err := w.scalar(item)
			if err != nil {
				return raw{}, err
			}
			r.list = append(r.list, s)
		}
		return r, nil
	case *ast.MappingNode:
		r := raw{pairs: map[string]string{}}
		for _, v := range n.Values {
			k, err := w.scalar(v.Key)
			if err != nil {
				return raw{}, err
			}
			if r.pairs[k], err = w.scalar(v.Value); err != nil {
				return raw{}, err
			}
		}
		return r, nil
	}
	s, err := w.scalar(n)
	return textOf(s), err
}

func (w *walker) scalar(n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, nil
	case *ast.MappingKeyNode:
		return w.scalar(n.Value)
	}
	return "", fmt.Errorf("%s: expected a plain value, found %s", w.where(n), strings.ToLower(n.Type().String()))
}
