package e2b

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/meter"
)

// Meter is what this package needs of meter.Meter.
type Meter interface {
	Points(ctx context.Context, team, sandboxID string, w meter.Window) ([]meter.Point, error)
	Latest(ctx context.Context, team string, sandboxIDs []string) (map[string]meter.Point, error)
	TeamPoints(ctx context.Context, team string, w meter.Window) ([]meter.TeamPoint, error)
}

const (
	// maxMetricIDs bounds the sandboxes that one request asks about.
	maxMetricIDs = 100
	// lastSecond is the end of the year 9999 in Unix seconds.
	lastSecond = 253402300799
)

// GetSandboxMetrics implements e2bapi.StrictServerInterface. What is no id names
// a sandbox that the team never had.
func (s *server) GetSandboxMetrics(ctx context.Context, r e2bapi.GetSandboxMetricsRequestObject) (e2bapi.GetSandboxMetricsResponseObject, error) {
	w, err := window(r.Params.Start, r.Params.End)
	if err != nil {
		return nil, err
	}
	out := e2bapi.GetSandboxMetrics200JSONResponse{}
	id, err := idOf(r.Id)
	if err != nil {
		return out, nil //nolint:nilerr // the contract has no error for it
	}
	points, err := s.Meter.Points(ctx, string(api.Caller(ctx).Team), string(id), w)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		out = append(out, sandboxMetric(p))
	}
	return out, nil
}

// GetSandboxesMetrics implements e2bapi.StrictServerInterface.
func (s *server) GetSandboxesMetrics(ctx context.Context, r e2bapi.GetSandboxesMetricsRequestObject) (e2bapi.GetSandboxesMetricsResponseObject, error) {
	given := r.Params.SandboxIds
	if len(given) < 1 || len(given) > maxMetricIDs {
		return nil, apierr.Field("sandbox_ids", "must be 1 to %d ids, are %d", maxMetricIDs, len(given))
	}
	ids := make([]string, 0, len(given))
	for _, param := range given {
		id, err := idOf(param)
		if err != nil {
			return nil, apierr.Field("sandbox_ids", "%q is not the id of a sandbox", api.Clip(param))
		}
		if slices.Contains(ids, string(id)) {
			return nil, apierr.Field("sandbox_ids", "%q is given twice", id)
		}
		ids = append(ids, string(id))
	}
	latest, err := s.Meter.Latest(ctx, string(api.Caller(ctx).Team), ids)
	if err != nil {
		return nil, err
	}
	out := e2bapi.GetSandboxesMetrics200JSONResponse{Sandboxes: map[string]e2bapi.SandboxMetric{}}
	for id, p := range latest {
		out.Sandboxes[id] = sandboxMetric(p)
	}
	return out, nil
}

// GetTeamMetrics implements e2bapi.StrictServerInterface.
func (s *server) GetTeamMetrics(ctx context.Context, r e2bapi.GetTeamMetricsRequestObject) (e2bapi.GetTeamMetricsResponseObject, error) {
	points, err := s.teamPoints(ctx, r.Id, r.Params.Start, r.Params.End)
	if err != nil {
		return nil, err
	}
	out := e2bapi.GetTeamMetrics200JSONResponse{}
	for _, p := range points {
		out = append(out, e2bapi.TeamMetric{
			Timestamp: p.At.UTC(), TimestampUnix: p.At.Unix(),
			ConcurrentSandboxes: int32(p.Concurrent), SandboxStartRate: p.StartRate, //nolint:gosec // counts of sandboxes are small
		})
	}
	return out, nil
}

// GetTeamMetricsMax implements e2bapi.StrictServerInterface. A range without
// sandboxes has the value 0 at its end.
func (s *server) GetTeamMetricsMax(ctx context.Context, r e2bapi.GetTeamMetricsMaxRequestObject) (e2bapi.GetTeamMetricsMaxResponseObject, error) {
	var value func(meter.TeamPoint) float64
	switch r.Params.Metric {
	case e2bapi.ConcurrentSandboxes:
		value = func(p meter.TeamPoint) float64 { return float64(p.Concurrent) }
	case e2bapi.SandboxStartRate:
		value = func(p meter.TeamPoint) float64 { return p.StartRate }
	default:
		return nil, apierr.Field("metric", "%q is not concurrent_sandboxes or sandbox_start_rate", api.Clip(string(r.Params.Metric)))
	}
	points, err := s.teamPoints(ctx, r.Id, r.Params.Start, r.Params.End)
	if err != nil {
		return nil, err
	}
	best := meter.TeamPoint{At: time.Now()}
	if r.Params.End != nil && *r.Params.End < best.At.Unix() {
		best.At = time.Unix(*r.Params.End, 0)
	}
	for i, p := range points {
		if i == 0 || value(p) > value(best) {
			best = p
		}
	}
	return e2bapi.GetTeamMetricsMax200JSONResponse{Timestamp: best.At.UTC(), TimestampUnix: best.At.Unix(), Value: value(best)}, nil
}

func (s *server) teamPoints(ctx context.Context, team string, start, end *int64) ([]meter.TeamPoint, error) {
	who := api.Caller(ctx)
	if team != string(who.Team) {
		return nil, apierr.New(errdefs.ErrPermissionDenied, "this key is of team %q", who.Team)
	}
	w, err := window(start, end)
	if err != nil {
		return nil, err
	}
	return s.Meter.TeamPoints(ctx, team, w)
}

// window reads a range in Unix seconds; the second of the end belongs to it.
func window(start, end *int64) (meter.Window, error) {
	var w meter.Window
	for _, f := range []struct {
		name string
		at   *int64
		into *time.Time
	}{{"start", start, &w.From}, {"end", end, &w.To}} {
		if f.at == nil {
			continue
		}
		if *f.at < 0 || *f.at > lastSecond {
			return w, apierr.Field(f.name, "must be Unix seconds, is %d", *f.at)
		}
		*f.into = time.Unix(*f.at, 0)
	}
	if start != nil && end != nil && *start > *end {
		return w, apierr.Field("start", "must not be after end")
	}
	if end != nil {
		w.To = w.To.Add(time.Second - time.Nanosecond)
	}
	return w, nil
}

func sandboxMetric(p meter.Point) e2bapi.SandboxMetric {
	return e2bapi.SandboxMetric{
		Timestamp: p.At.UTC(), TimestampUnix: p.At.Unix(),
		CpuCount: int32(p.CPUs), CpuUsedPct: p.CPUPercent, //nolint:gosec // CPU counts are small
		MemUsed: p.MemoryBytes, MemTotal: p.MemoryTotal, MemCache: p.CacheBytes,
		DiskUsed: p.DiskBytes, DiskTotal: p.DiskTotal,
	}
}
