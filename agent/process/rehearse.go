package process

import (
	"context"
	"encoding/base64"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/process"
)

// rehearsalLimit is when a rehearsal is given up and its processes are killed.
const rehearsalLimit = 5 * time.Second

// Rehearse runs a login shell that does nothing, as a user, the way clients run
// commands, and waits for its end: what the first command of a sandbox has to
// read from its image is in memory afterwards. Whether it succeeds does not
// matter; a template need not have that shell or that user.
func (s *Service) Rehearse(ctx context.Context, user string) {
	ctx, cancel := context.WithTimeout(ctx, rehearsalLimit)
	defer cancel()
	req := connect.NewRequest(&pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", "true"}},
	})
	req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	_, sub, err := s.start(ctx, req)
	if err != nil {
		return
	}
	defer sub.leave()
	for {
		select {
		case ev := <-sub.events:
			if ev.GetEnd() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
