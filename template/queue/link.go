package queue

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
)

// linkLife is how long an upload may begin after its link was made.
const linkLife = 30 * time.Minute

// Link is a permission to upload one file once: it holds for a team, a template,
// a hash and a size, until a time.
type Link struct {
	Team     identity.TeamID
	Template template.ID
	Hash     string
	// Max is the most bytes of the file.
	Max     int64
	Expires time.Time
	nonce   string
}

// errLink is the one text for whatever is wrong with a link.
var errLink = apierr.New(errdefs.ErrPermissionDenied, "the upload link is not valid, or its time is over: ask for another")

// Present says whether a team has uploaded the files of a hash, and where to
// upload them if not: the query of a link whose path names template and hash.
// errdefs.ErrNotFound and ErrPermissionDenied are about the template.
func (q *Queue) Present(ctx context.Context, who identity.Principal, ref, hash string, most int64) (t template.ID, present bool, link url.Values, err error) {
	if err := CheckHash(hash); err != nil {
		return "", false, nil, err
	}
	found, err := q.own(ctx, who, ref)
	if err != nil {
		return "", false, nil, err
	}
	if present, err = q.deps.Files.Has(who.Team, hash); err != nil {
		return "", false, nil, err
	}
	l := Link{Team: who.Team, Template: found.ID, Hash: hash, Max: most, Expires: time.Now().Add(linkLife), nonce: rand.Text()}
	return found.ID, present, q.sign(l), nil
}

// sign encodes a link.
func (q *Queue) sign(l Link) url.Values {
	return url.Values{
		"team": {string(l.Team)}, "max": {strconv.FormatInt(l.Max, 10)}, "expires": {strconv.FormatInt(l.Expires.Unix(), 10)},
		"nonce": {l.nonce}, "signature": {q.deps.Seed.Derive("upload/", l.text()).Reveal()},
	}
}

// text is what is signed; no part holds the separator.
func (l Link) text() string {
	return strings.Join([]string{
		string(l.Team), string(l.Template), l.Hash, strconv.FormatInt(l.Max, 10), strconv.FormatInt(l.Expires.Unix(), 10), l.nonce,
	}, "\n")
}

// Accept checks the link of an upload of size bytes and uses it up.
// errdefs.ErrPermissionDenied, with one text, for every link that does not hold,
// also the second time; apierr.ErrTooLarge, and the link stays, above its size.
func (q *Queue) Accept(ctx context.Context, t template.ID, hash string, query url.Values, size int64) (Link, error) {
	most, err1 := strconv.ParseInt(query.Get("max"), 10, 64)
	expires, err2 := strconv.ParseInt(query.Get("expires"), 10, 64)
	l := Link{
		Team: identity.TeamID(query.Get("team")), Template: t, Hash: hash, Max: most, Expires: time.Unix(expires, 0), nonce: query.Get("nonce"),
	}
	// The cheap checks go first; each part is bounded before it is hashed.
	if err1 != nil || err2 != nil || len(l.nonce) != 26 || len(l.Team) > 128 || len(t) > 64 || !hashForm.MatchString(hash) ||
		strings.ContainsAny(string(l.Team)+string(t)+l.nonce, "\n") ||
		!q.deps.Seed.Derive("upload/", l.text()).Equal(query.Get("signature")) || !time.Now().Before(l.Expires) {
		return Link{}, errLink
	}
	if size > l.Max {
		e := apierr.New(apierr.ErrTooLarge, "the file has %d bytes and the limit is %d", size, l.Max)
		e.Limit = "template.upload_max"
		return Link{}, e
	}
	err := q.deps.Store.UseUpload(ctx, l.nonce, l.Expires)
	if errdefs.IsAlreadyExists(err) {
		return Link{}, errLink.WithCause(fmt.Errorf("used before: %w", err))
	}
	if err != nil {
		return Link{}, err
	}
	return l, nil
}
