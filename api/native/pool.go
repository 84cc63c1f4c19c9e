package native

import (
	"cmp"
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/template"
)

// Pool is what is known of warm sandboxes. The zero value keeps none.
type Pool struct {
	// Status lists what is kept warm, of all teams; nil where nothing ever is.
	Status func() []pool.Status
	// Taken counts the creates of all teams since the server started, and those
	// among them that found a warm sandbox. Nil counts none.
	Taken func() (hits, creates int64)
	// MaxBytes bounds the memory of all warm sandboxes; 0 means no limit.
	MaxBytes int64
	// Planned are the references of pool.templates, as the default team means
	// them.
	Planned []string
}

// someProblem is what teams learn of a problem whose text is the operator's:
// it may name what is on the host.
const someProblem = "the server's log and the keys of team default tell why"

// GetPool implements nativeapi.StrictServerInterface.
func (s *server) GetPool(ctx context.Context, _ nativeapi.GetPoolRequestObject) (nativeapi.GetPoolResponseObject, error) {
	out := nativeapi.GetPool200JSONResponse{
		Enabled: s.Pool.Status != nil, MemoryLimitBytes: s.Pool.MaxBytes, Pools: []nativeapi.Pool{},
	}
	if !out.Enabled {
		return out, nil
	}
	if s.Pool.Taken != nil {
		if hits, creates := s.Pool.Taken(); creates > 0 {
			out.HitRate = new(float64(hits) / float64(creates))
		}
	}
	team := api.Caller(ctx).Team
	all := s.Pool.Status()
	visible, err := s.visible(ctx, team, all)
	if err != nil {
		return nil, err
	}
	for _, st := range all {
		t, ok := visible[template.BuildID(cmp.Or(st.For, st.Build))]
		if !ok {
			continue
		}
		p := warm(st)
		p.Template = string(t.ID)
		if len(t.Names) > 0 {
			p.TemplateName = t.Names[0]
		}
		if p.Problem != "" && team != identity.DefaultTeam {
			p.Problem = someProblem
		}
		out.MemoryBytes += p.MemoryBytes
		out.Pools = append(out.Pools, p)
	}
	if team == identity.DefaultTeam {
		out.MissingTemplates, err = s.missing(ctx)
	}
	return out, err
}

// visible maps the builds of pools to the templates that a team may use. Builds
// of other templates are not in it.
func (s *server) visible(ctx context.Context, team identity.TeamID, pools []pool.Status) (map[template.BuildID]template.Template, error) {
	templates, err := s.Templates.List(ctx, team)
	if err != nil {
		return nil, err
	}
	out := map[template.BuildID]template.Template{}
	for _, t := range templates {
		if t.Current != "" {
			out[t.Current] = t
		}
	}
	older := false // builds of demand outlive the next build for some minutes
	for _, st := range pools {
		_, current := out[template.BuildID(cmp.Or(st.For, st.Build))]
		older = older || !current
	}
	if !older {
		return out, nil
	}
	for _, t := range templates {
		builds, err := s.Templates.Builds(ctx, team, string(t.ID))
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		for _, b := range builds {
			out[b.ID] = t
		}
	}
	return out, nil
}

// missing lists the planned references that name no template.
func (s *server) missing(ctx context.Context) ([]string, error) {
	var out []string
	for _, ref := range s.Pool.Planned {
		_, err := s.Templates.Builds(ctx, identity.DefaultTeam, ref)
		switch {
		case errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err):
			out = append(out, ref)
		case err != nil:
			return nil, err
		}
	}
	return out, nil
}

// warm is the wire form of a pool, without what names its template.
func warm(st pool.Status) nativeapi.Pool {
	tier := nativeapi.Hot
	if st.Tier == pool.Booted {
		tier = nativeapi.Prebooted
	}
	return nativeapi.Pool{
		BuildID: cmp.Or(st.For, st.Build), Tier: tier, Resources: resources(st.Resources),
		Target: st.Target, Hot: st.Hot, Making: st.Making,
		OldestSeconds: int64(st.Oldest / time.Second), MemoryBytes: st.Bytes,
		Hits: st.Hits, Misses: st.Misses, Made: st.Made, Failed: st.Failed,
		LastFillMs: st.MadeIn.Milliseconds(), Problem: st.Problem,
	}
}
