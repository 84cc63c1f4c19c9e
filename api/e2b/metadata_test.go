package e2b_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/api/e2b"
)

// encode is what the SDKs do before the query itself is encoded.
func encode(m map[string]string) string {
	component := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	var parts []string
	for k, v := range m {
		parts = append(parts, url.QueryEscape(component(k))+"="+url.QueryEscape(component(v)))
	}
	return strings.Join(parts, "&")
}

func TestDecodeMetadata(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]map[string]string{
		"":                       nil,
		"a=b":                    {"a": "b"},
		"a=b&c=d":                {"a": "b", "c": "d"},
		"a%20b=x%26y":            {"a b": "x&y"},
		"a=%3D":                  {"a": "="},
		"a=":                     {"a": ""},
		"%C3%BC=%E2%82%AC":       {"ü": "€"},
		"a+b=c%2Bd":              {"a b": "c+d"},
		"percent=100%25&q=%2525": {"percent": "100%", "q": "%25"},
		// As the JavaScript SDK sends {"a b&c=d": "x&y=z %20+/ü!~"}.
		"a%2520b%2526c%253Dd=x%2526y%253Dz%2520%252520%252B%252F%25C3%25BC%21%7E": {"a b&c=d": "x&y=z %20+/ü!~"},
		// As the Python SDK sends {"a/b": "c d"}.
		"a%2Fb=c%2520d": {"a/b": "c d"},
		"a=100%2525":    {"a": "100%"},
	} {
		got, err := e2b.DecodeMetadata(in)
		if err != nil {
			t.Errorf("DecodeMetadata(%q) = %v", in, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("DecodeMetadata(%q):\n%s", in, d)
		}
	}
	for _, in := range []string{"a", "a=b=c", "a=b&", "&", "a=%", "a=%zz", "%=b"} {
		if got, err := e2b.DecodeMetadata(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("DecodeMetadata(%q) = %v, %v, want invalid argument", in, got, err)
		}
	}
}

func FuzzDecodeMetadata(f *testing.F) {
	for _, s := range []string{"", "a=b", "a%20b=x%26y&c=", "a=b=c", "%zz=1", "a+b=%2B", "&&", "=", "a=%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := e2b.DecodeMetadata(s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("DecodeMetadata(%q) = %v", s, err)
			}
			return
		}
		again, err := e2b.DecodeMetadata(encode(got))
		if err != nil {
			t.Fatalf("what was decoded from %q does not encode: %v", s, err)
		}
		if len(got) > 0 && !cmp.Equal(got, again) {
			t.Fatalf("%q: %v became %v", s, got, again)
		}
	})
}
