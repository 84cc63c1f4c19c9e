package e2b

import (
	"errors"
	"net/url"
	"strings"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/internal/apierr"
)

// DecodeMetadata reads the metadata filter after the query itself was decoded:
// pairs key=value joined by &, each key and value encoded once more. The SDKs
// encode them twice more; that form is recognised by its escapes. An empty text
// is no filter.
func DecodeMetadata(query string) (map[string]string, error) {
	if query == "" {
		return nil, nil
	}
	twice := encodedTwice(query)
	out := map[string]string{}
	for part := range strings.SplitSeq(query, "&") {
		rawKey, rawValue, ok := strings.Cut(part, "=")
		if !ok || strings.Contains(rawValue, "=") {
			return nil, apierr.Field("metadata", "%q is not key=value", api.Clip(part))
		}
		key, err1 := unescape(rawKey, twice)
		value, err2 := unescape(rawValue, twice)
		if err := errors.Join(err1, err2); err != nil {
			return nil, apierr.Field("metadata", "%q is not percent-encoded", api.Clip(part))
		}
		out[key] = value
	}
	return out, nil
}

func unescape(s string, twice bool) (string, error) {
	out, err := url.QueryUnescape(s)
	if err == nil && twice {
		out, err = url.QueryUnescape(out)
	}
	return out, err
}

// encodedTwice tells what the SDKs send from what is written by hand. They
// percent-encode keys and values and then build a query of the result, so every
// percent sign begins the escape of one of an escape ("%25" and two digits), or
// of a character that only the second encoding knows. By hand the same text is
// possible only where a value itself holds an escape.
func encodedTwice(query string) bool {
	if strings.Contains(query, "+") {
		return false
	}
	found := false
	for rest := query; ; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			return found
		}
		rest = rest[i+1:]
		if len(rest) < 2 {
			return false
		}
		switch strings.ToUpper(rest[:2]) {
		case "25":
			if len(rest) < 4 || !isHex(rest[2]) || !isHex(rest[3]) {
				return false
			}
			found = true
		case "21", "27", "28", "29", "2A", "2F", "7E": // ! ' ( ) * / ~
		default:
			return false
		}
	}
}

func isHex(c byte) bool {
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')
}
