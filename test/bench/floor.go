package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/process"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
	"github.com/caisson-dev/caisson/internal/testenv"
)

// floorServer answers the SDK at once, with a sandbox that is none and a command
// that was not run: what the SDK itself and the way to it take on this machine.
func floorServer() (s *testenv.Server, stop func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(instant{}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.Method {
		case http.MethodPost:
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"sandboxID": "ifloor", "templateID": "base", "clientID": "node", "envdVersion": "0.5.0",
				"domain": l.Addr().String(), "envdAccessToken": "none",
			})
		case http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		default:
			_, _ = w.Write([]byte("[]"))
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // ends with stop
	return &testenv.Server{URL: "http://" + l.Addr().String(), Key: "e2b_" + strings.Repeat("0", 40)}, srv.Close, nil
}

// instant is a process service without processes.
type instant struct {
	processconnect.UnimplementedProcessHandler
}

// Start implements the RPC.
func (instant) Start(_ context.Context, _ *connect.Request[pb.StartRequest], stream *connect.ServerStream[pb.StartResponse]) error {
	for _, ev := range []*pb.ProcessEvent{
		{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: 1}}},
		{Event: &pb.ProcessEvent_Data{Data: &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: []byte("hi\n")}}}},
		{Event: &pb.ProcessEvent_End{End: &pb.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}}},
	} {
		if err := stream.Send(&pb.StartResponse{Event: ev}); err != nil {
			return err
		}
	}
	return nil
}
