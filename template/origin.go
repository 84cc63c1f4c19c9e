package template

import "strings"

// How the sources of builds begin that were not made of packages or a tar file.
// What stands behind is for people.
const (
	FromImage    = "image "
	FromTemplate = "template "
	FromArchive  = "archive "
	renewalOf    = "renewal of "
)

// RenewalSource is the source of a build that only saves the memory of another one
// anew. Nobody but the server gives it.
func RenewalSource(of Build) string {
	return renewalOf + string(of.ID) + ", " + of.Origin()
}

// Renews returns the build whose memory this one saves anew, and false for one that
// somebody asked for.
func (b Build) Renews() (BuildID, bool) {
	id, _, ok := b.renewal()
	return id, ok
}

func (b Build) renewal() (id BuildID, origin string, ok bool) {
	rest, ok := strings.CutPrefix(b.Source, renewalOf)
	if !ok {
		return "", "", false
	}
	first, origin, ok := strings.Cut(rest, ", ")
	return BuildID(first), origin, ok
}

// Origin is the source, of what was renewed in the end.
func (b Build) Origin() string {
	if _, origin, ok := b.renewal(); ok {
		return origin
	}
	return b.Source
}

// FromRecipe says whether a build's files are of a recipe or an archive, by its
// team or for it.
func (b Build) FromRecipe() bool {
	origin := b.Origin()
	for _, prefix := range []string{FromImage, FromTemplate, FromArchive} {
		if strings.HasPrefix(origin, prefix) {
			return true
		}
	}
	return false
}
