package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"
	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// FileType tells files from directories.
type FileType string

// The types of a file.
const (
	RegularFile FileType = "file"
	Directory   FileType = "directory"
	Symlink     FileType = "symlink"
	OtherFile   FileType = "other"
)

// File is an entry of a sandbox's file system.
type File struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Type FileType `json:"type"`
	Size int64    `json:"size"`
	// Mode has the permission bits only.
	Mode       uint32    `json:"mode"`
	Owner      string    `json:"owner"`
	Group      string    `json:"group"`
	ModifiedAt time.Time `json:"modifiedAt,omitzero"`
	Target     string    `json:"target,omitempty"`
}

func fileOf(e *pb.EntryInfo) File {
	f := File{
		Name: e.GetName(), Path: e.GetPath(), Size: e.GetSize(), Mode: e.GetMode(),
		Owner: e.GetOwner(), Group: e.GetGroup(), Target: e.GetSymlinkTarget(), Type: OtherFile,
	}
	if t := e.GetModifiedTime(); t != nil {
		f.ModifiedAt = t.AsTime()
	}
	switch e.GetType() {
	case pb.FileType_FILE_TYPE_FILE:
		f.Type = RegularFile
	case pb.FileType_FILE_TYPE_DIRECTORY:
		f.Type = Directory
	case pb.FileType_FILE_TYPE_SYMLINK:
		f.Type = Symlink
	}
	return f
}

// Stat describes a path; a symlink that resolves has the type of its target.
func (a *Agent) Stat(ctx context.Context, path string) (File, error) {
	resp, err := a.fs.Stat(ctx, connect.NewRequest(&pb.StatRequest{Path: path}))
	if err != nil {
		return File{}, rpcError("stat "+path, err)
	}
	return fileOf(resp.Msg.GetEntry()), nil
}

// ListDir lists a directory to a depth of at least 1.
func (a *Agent) ListDir(ctx context.Context, path string, depth uint32) ([]File, error) {
	resp, err := a.fs.ListDir(ctx, connect.NewRequest(&pb.ListDirRequest{Path: path, Depth: depth}))
	if err != nil {
		return nil, rpcError("list "+path, err)
	}
	var out []File
	for _, e := range resp.Msg.GetEntries() {
		out = append(out, fileOf(e))
	}
	return out, nil
}

// MakeDir makes a directory with its parents; errdefs.ErrConflict when it
// exists.
func (a *Agent) MakeDir(ctx context.Context, path string) error {
	_, err := a.fs.MakeDir(ctx, connect.NewRequest(&pb.MakeDirRequest{Path: path}))
	return rpcError("make directory "+path, err)
}

// Remove removes a path with all below it; a missing one is no error.
func (a *Agent) Remove(ctx context.Context, path string) error {
	_, err := a.fs.Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: path}))
	return rpcError("remove "+path, err)
}

func (a *Agent) fileURL(path string) string {
	q := url.Values{"path": {path}}
	if a.user != "" {
		q.Set("username", a.user)
	}
	return a.c.base.String() + "/files?" + q.Encode()
}

// ReadFile opens a file for reading; the caller closes it. size is -1 when it
// is not known.
func (a *Agent) ReadFile(ctx context.Context, path string) (body io.ReadCloser, size int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.fileURL(path), nil)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	a.route(req, agentPort)
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := a.c.roundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// WriteFile writes r to a file, making its parents. size is -1 when it is not
// known.
func (a *Agent) WriteFile(ctx context.Context, path string, r io.Reader, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.fileURL(path), io.NopCloser(r))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	a.route(req, agentPort)
	req.Header.Set("Content-Type", "application/octet-stream")
	if size >= 0 {
		req.ContentLength = size
	}
	if size == 0 {
		req.Body = http.NoBody
	}
	resp, err := a.c.roundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	return errors.Join(err, resp.Body.Close())
}
