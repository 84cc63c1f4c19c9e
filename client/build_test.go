package client_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/client"
)

// TestUploadFiles sends an archive to the link's path on the server that the
// client knows, with a length and without its key.
func TestUploadFiles(t *testing.T) {
	t.Parallel()
	var put *http.Request
	var body string
	link := "http://inside.example:1/templates/t/files/h?signature=s&max=3"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && r.URL.Path == "/below/templates/t/files/h" && r.Header.Get("X-API-Key") == "key":
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]any{"present": true, "url": link})
		case r.Method == http.MethodPut:
			data, _ := io.ReadAll(r.Body)
			put, body = r, string(data)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	c, err := client.New(srv.URL+"/below", client.WithAPIKey("key"))
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := c.FilesPresent(t.Context(), "t", "h"); !ok || err != nil {
		t.Errorf("FilesPresent() = %v, %v", ok, err)
	}
	if _, err := c.FilesPresent(t.Context(), "t", "other"); !errdefs.IsNotFound(err) {
		t.Errorf("FilesPresent(unknown) = %v, want not found", err)
	}
	if err := c.UploadFiles(t.Context(), "t", "h", strings.NewReader("abc"), 3); err != nil {
		t.Fatalf("UploadFiles() = %v", err)
	}
	if put.URL.RequestURI() != "/below/templates/t/files/h?signature=s&max=3" || put.ContentLength != 3 || len(put.TransferEncoding) != 0 || body != "abc" {
		t.Errorf("upload went to %s with %d bytes %v, body %q", put.URL.RequestURI(), put.ContentLength, put.TransferEncoding, body)
	}
	if put.Header.Get("X-API-Key") != "" || put.Header.Get("Authorization") != "" {
		t.Error("the upload carries the key")
	}
	if err := c.UploadFiles(t.Context(), "t", "h", strings.NewReader(""), 0); err != nil || put.ContentLength != 0 {
		t.Errorf("UploadFiles() of nothing = %v, with %d bytes", err, put.ContentLength)
	}
}
