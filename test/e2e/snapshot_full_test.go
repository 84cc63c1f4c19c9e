package e2e_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that is too full to save a sandbox says so; the sandbox runs on, and
// nothing of the attempt is left.
func TestVaultIsFull(t *testing.T) {
	t.Parallel()
	s := own(t)
	src := create(t, s, map[string]any{"envVars": map[string]string{"GREETING": "hello"}})
	pid := sh(t, s, src, counting).Stdout
	vault := filepath.Join(s.Data, "snapshots")
	saveAs(t, s, src.ID, "point")
	if err := unix.Mount("tmpfs", vault, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(vault, unix.MNT_DETACH) })
	// What is saved already is out of the way of the full disk.
	rollback := "/native/v1/sandboxes/" + src.ID + "/rollback"
	for call, path := range map[string]string{
		"snapshot": "/sandboxes/" + src.ID + "/snapshots", "fork": "/sandboxes/" + src.ID + "/fork", "pause": "/sandboxes/" + src.ID + "/pause",
		"rollback": rollback, "diff": "/native/v1/diff?to=" + src.ID,
	} {
		method, body := http.MethodPost, map[string]any{}
		switch call {
		case "diff":
			method, body = http.MethodGet, nil
		case "rollback":
			body = map[string]any{"snapshot": "point"}
		}
		err := s.API(t.Context(), method, path, body, nil)
		if status(err) < 500 {
			t.Fatalf("%s on a full disk: %v", call, err)
		}
		wantContains(t, call+" on a full disk", err.Error(), "disk is full")
		if got := sh(t, s, src, "echo $GREETING; "+grows(pid)); got.Stdout != "hello\ncounts\n" {
			t.Errorf("after %s the sandbox has %+v", call, got)
		}
		if left, err := os.ReadDir(vault); err != nil || len(left) != 0 {
			t.Errorf("after %s the vault holds %v (%v)", call, left, err)
		}
	}
	if err := unix.Unmount(vault, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := s.API(t.Context(), http.MethodPost, rollback, map[string]any{"snapshot": "point"}, nil); err != nil {
		t.Errorf("rollback with space again: %v", err)
	}
	id := saveAs(t, s, src.ID, "")
	if err := s.API(context.WithoutCancel(t.Context()), http.MethodDelete, "/templates/"+id, nil, nil); err != nil {
		t.Error(err)
	}
}
