package native

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/meter"
)

// Meter is what this package needs of meter.Meter.
type Meter interface {
	Report(ctx context.Context, team string, w meter.Window, g meter.Grouping) (meter.Report, error)
	Points(ctx context.Context, team, sandboxID string, w meter.Window) ([]meter.Point, error)
}

// GetUsage implements nativeapi.StrictServerInterface.
func (s *server) GetUsage(ctx context.Context, r nativeapi.GetUsageRequestObject) (nativeapi.GetUsageResponseObject, error) {
	g, err := meter.ParseGrouping(value(r.Params.Group))
	if err != nil {
		return nil, apierr.Field("group", "%q is not sandbox, team, template or label:KEY", api.Clip(value(r.Params.Group)))
	}
	w := meter.Window{From: value(r.Params.From), To: value(r.Params.To)}
	for name, at := range map[string]time.Time{"from": w.From, "to": w.To} {
		if !at.IsZero() && (at.Year() < 1970 || at.Year() > 9999) {
			return nil, apierr.Field(name, "must be a time from 1970 on")
		}
	}
	if !w.From.IsZero() && !w.To.IsZero() && w.From.After(w.To) {
		return nil, apierr.Field("from", "must not be after to")
	}
	rep, err := s.Meter.Report(ctx, string(api.Caller(ctx).Team), w, g)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("from", "must not be in the future").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return nativeapi.GetUsage200JSONResponse{
		From: rep.From.UTC(), To: rep.To.UTC(), Lines: convert(rep.Lines, usageLine), Total: usageLine(rep.Total),
	}, nil
}

func usageLine(u meter.Usage) nativeapi.Usage {
	return nativeapi.Usage{
		Group: u.Group, Runs: u.Runs, Sandboxes: u.Sandboxes,
		WallSeconds: u.Wall.Seconds(), CpuSeconds: u.CPU.Seconds(), CpuLimitSeconds: u.CPULimit.Seconds(),
		MemoryMiBSeconds: u.MemoryMiBSeconds, MemoryLimitMiBSeconds: u.MemoryLimitMiBSeconds, MemoryPeakBytes: u.PeakMemoryBytes,
		EgressInBytes: u.EgressIn, EgressOutBytes: u.EgressOut, SavedMiBHours: u.SavedMiBHours,
	}
}
