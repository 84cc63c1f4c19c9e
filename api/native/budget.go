package native

import (
	"context"
	"math"
	"time"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// Budgets is what this package needs of sandbox.Manager for budgets.
type Budgets interface {
	SetBudget(ctx context.Context, who identity.Principal, id sandbox.ID, b sandbox.Budget) (sandbox.Sandbox, error)
	TeamBudget(ctx context.Context, who identity.Principal) (sandbox.TeamStatus, error)
}

// PutBudget implements nativeapi.StrictServerInterface.
func (s *server) PutBudget(ctx context.Context, r nativeapi.PutBudgetRequestObject) (nativeapi.PutBudgetResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	b, err := readBudget(r.Body)
	if err != nil {
		return nil, err
	}
	box, err := s.Budgets.SetBudget(ctx, api.Caller(ctx), id, b)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.PutBudget200JSONResponse(s.detail(box)), nil
}

func readBudget(in *nativeapi.Budget) (sandbox.Budget, error) {
	if in == nil {
		return sandbox.Budget{}, nil
	}
	const most = math.MaxInt64 / int64(time.Second)
	for _, m := range []struct {
		name    string
		n, most int64
	}{
		{"cpuSeconds", in.CpuSeconds, most}, {"wallSeconds", in.WallSeconds, most}, {"egressBytes", in.EgressBytes, math.MaxInt64},
	} {
		if m.n < 0 || m.n > m.most {
			return sandbox.Budget{}, apierr.Field("budget."+m.name, "must be 0 to %d, is %d", m.most, m.n)
		}
	}
	return sandbox.Budget{
		CPU: time.Duration(in.CpuSeconds) * time.Second, Wall: time.Duration(in.WallSeconds) * time.Second, EgressBytes: in.EgressBytes,
	}, nil
}

// budget is what a sandbox shows of it; nil when nothing bounds it.
func budget(box sandbox.Sandbox) *nativeapi.Budget {
	b := box.Lifecycle.Budget
	if b == (sandbox.Budget{}) {
		return nil
	}
	return &nativeapi.Budget{
		CpuSeconds: int64(b.CPU / time.Second), WallSeconds: int64(b.Wall / time.Second), EgressBytes: b.EgressBytes,
		Spent: box.Lifecycle.Spent,
	}
}

// GetTeamBudget implements nativeapi.StrictServerInterface.
func (s *server) GetTeamBudget(ctx context.Context, _ nativeapi.GetTeamBudgetRequestObject) (nativeapi.GetTeamBudgetResponseObject, error) {
	who := api.Caller(ctx)
	st, err := s.Budgets.TeamBudget(ctx, who)
	if err != nil {
		return nil, err
	}
	return nativeapi.GetTeamBudget200JSONResponse{
		Team: string(who.Team), Period: nativeapi.TeamBudgetPeriod(st.Period), Since: st.Since, Until: st.Until, Own: st.Own,
		CpuSeconds: int64(st.CPU / time.Second), WallSeconds: int64(st.Wall / time.Second), EgressBytes: st.EgressBytes, Spent: st.Spent,
		Used: nativeapi.TeamUsed{CpuSeconds: st.Used.CPU.Seconds(), WallSeconds: st.Used.Wall.Seconds(), EgressBytes: st.Used.EgressBytes},
	}, nil
}
