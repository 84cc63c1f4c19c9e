package native

import (
	"context"
	"time"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/meter"
)

// recent is how far metrics go back that name no time.
const recent = 10 * time.Minute

// GetMetrics implements nativeapi.StrictServerInterface.
func (s *server) GetMetrics(ctx context.Context, r nativeapi.GetMetricsRequestObject) (nativeapi.GetMetricsResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	if _, err := s.Sandboxes.Get(ctx, who, id); err != nil {
		return nil, about(id, err)
	}
	w := meter.Window{From: value(r.Params.From), To: value(r.Params.To)}
	for name, at := range map[string]time.Time{"from": w.From, "to": w.To} {
		if !at.IsZero() && (at.Year() < 1970 || at.Year() > 9999) {
			return nil, apierr.Field(name, "is not in the years 1970 to 9999")
		}
	}
	if w.From.IsZero() {
		w.From = time.Now().Add(-recent)
		if !w.To.IsZero() {
			w.From = w.To.Add(-recent)
		}
	}
	if !w.To.IsZero() && w.From.After(w.To) {
		return nil, apierr.Field("from", "is after to")
	}
	points, err := s.Meter.Points(ctx, string(who.Team), string(id), w)
	if err != nil {
		return nil, err
	}
	out := nativeapi.GetMetrics200JSONResponse{Points: make([]nativeapi.MetricPoint, len(points))}
	for i, p := range points {
		out.Points[i] = nativeapi.MetricPoint{
			At: p.At.UTC(), Cpus: p.CPUs, CpuPercent: p.CPUPercent, MemoryBytes: p.MemoryBytes, MemoryTotal: p.MemoryTotal,
			CacheBytes: p.CacheBytes, DiskBytes: p.DiskBytes, DiskTotal: p.DiskTotal,
		}
	}
	return out, nil
}
