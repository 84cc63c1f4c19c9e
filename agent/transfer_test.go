package agent_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

func filesURL(path string, more ...string) string {
	q := url.Values{"path": {path}}
	for i := 0; i < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return "/files?" + q.Encode()
}

var withToken = []string{"X-Access-Token", token}

func TestDownload(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	write(t, b.home+"/hello world ü.txt", "hello")
	write(t, b.home+"/empty", "")
	if err := unix.Mkfifo(b.home+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, link string
		header     []string
		code       int
		body       string
		headers    map[string]string
	}{
		{"file", filesURL("hello world ü.txt"), nil, 200, "", nil},
		{"whole", filesURL(b.home + "/hello world ü.txt"), nil, 200, "hello", map[string]string{
			"Content-Disposition": "inline; filename*=utf-8''hello%20world%20%C3%BC.txt", "Content-Type": "text/plain; charset=utf-8", "Content-Length": "5", "Content-Encoding": "",
		}},
		{"range", filesURL(b.home + "/hello world ü.txt"), []string{"Range", "bytes=1-3"}, 206, "ell", map[string]string{"Content-Range": "bytes 1-3/5"}},
		{"bad range", filesURL(b.home + "/hello world ü.txt"), []string{"Range", "bytes=9-"}, 416, "", nil},
		{"not modified", filesURL(b.home + "/hello world ü.txt"), []string{"If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"}, 304, "", nil},
		{"empty", filesURL(b.home + "/empty"), nil, 200, "", map[string]string{"Content-Length": "0"}},
		{"empty gzip", filesURL(b.home + "/empty"), []string{"Accept-Encoding", "gzip"}, 200, "", map[string]string{"Content-Length": "0"}},
		{"fetch default", filesURL(b.home + "/hello world ü.txt"), []string{"Accept-Encoding", "gzip, deflate, br"}, 200, "hello", map[string]string{"Content-Encoding": ""}},
		{"procfs", filesURL("/proc/self/comm"), nil, 200, "agent.test\n", nil},
		{"missing", filesURL(b.home + "/none"), nil, 404, fmt.Sprintf(`{"code":404,"message":"path '%s/none' does not exist"}`+"\n", b.home), nil},
		{"directory", filesURL(b.home), nil, 400, fmt.Sprintf(`{"code":400,"message":"path '%s' is a directory"}`+"\n", b.home), nil},
		{"fifo", filesURL(b.home + "/fifo"), nil, 400, "", nil},
		{"device", filesURL("/dev/zero"), nil, 400, "", nil},
		{"other home", filesURL("~root/x"), nil, 400, "", nil},
		{"NUL", filesURL("/a\x00b"), nil, 400, "", nil},
		{"unknown user", filesURL("/etc/hostname", "username", "who"), nil, 401, `{"code":401,"message":"invalid username: 'who'"}` + "\n", nil},
		{"no acceptable encoding", filesURL(b.home + "/empty"), []string{"Accept-Encoding", "br, identity;q=0"}, 406, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "file" {
				return // relative paths are the home's, see TestUpload
			}
			code, body, h := b.request(t, "GET", tt.link, "", append(tt.header, withToken...)...)
			if code != tt.code || tt.body != "" && body != tt.body {
				t.Errorf("got %d %q, want %d %q", code, body, tt.code, tt.body)
			}
			for name, want := range tt.headers {
				if got := h.Get(name); got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestDownloadGzip(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	content := strings.Repeat("compress me ", 100000)
	write(t, b.home+"/f", content)
	for _, accept := range []string{"gzip", "gzip, identity;q=0.5", "br, gzip;q=0.1, identity;q=0"} {
		code, body, h := b.request(t, "GET", filesURL(b.home+"/f"), "", append([]string{"Accept-Encoding", accept}, withToken...)...)
		if code != 200 || h.Get("Content-Encoding") != "gzip" || h.Get("Vary") != "Accept-Encoding" || h.Get("Content-Length") != "" {
			t.Fatalf("%s: %d %v", accept, code, h)
		}
		z, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := io.ReadAll(z); err != nil || string(plain) != content {
			t.Errorf("%s: %d bytes, %v", accept, len(plain), err)
		}
	}
	code, body, h := b.request(t, "GET", filesURL(b.home+"/f"), "", append([]string{"Accept-Encoding", "gzip", "Range", "bytes=0-3"}, withToken...)...)
	if code != 206 || body != "comp" || h.Get("Content-Encoding") != "" {
		t.Errorf("range = %d %q %v, want identity", code, body, h)
	}
}

func multipartBody(t *testing.T, parts ...string) (body, contentType string) {
	t.Helper()
	var buf bytes.Buffer
	m := multipart.NewWriter(&buf)
	for i := 0; i < len(parts); i += 3 {
		h := map[string][]string{"Content-Disposition": {fmt.Sprintf(`form-data; name=%q; filename="%s"`, parts[i], parts[i+1])}}
		w, err := m.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, parts[i+2])
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String(), m.FormDataContentType()
}

func TestUpload(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	home := b.home
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	octet := []string{"Content-Type", "application/octet-stream"}
	type file struct{ Path, Content string }
	form := func(parts ...string) (string, []string) {
		body, kind := multipartBody(t, parts...)
		return body, []string{"Content-Type", kind}
	}
	oneBody, one := form("file", "ignored name", "one")
	bigBody, bigKind := form("file", "x", string(big))
	manyBody, many := form("file", home+"/m/a.txt", "a", "other", "zzz", "skipped", "file", home+"/m/sub/b.txt", "b")
	twiceBody, twice := form("file", home+"/t", "1", "file", home+"/x/../t", "2")
	namelessBody, nameless := form("file", "", "1")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(big)
	_ = z.Close()
	write(t, home+"/isfile", "")
	if err := unix.Mkfifo(home+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path, body string
		header           []string
		code             int
		files            []file
	}{
		{"raw", home + "/new/dir/raw.bin", string(big), octet, 200, []file{{home + "/new/dir/raw.bin", string(big)}}},
		{"raw empty", home + "/empty", "", octet, 200, []file{{home + "/empty", ""}}},
		{"raw gzip", home + "/unzipped", zipped.String(), append([]string{"Content-Encoding", "gzip"}, octet...), 200, []file{{home + "/unzipped", string(big)}}},
		{"multipart with path", home + "/one.txt", oneBody, one, 200, []file{{home + "/one.txt", "one"}}},
		{"multipart big", home + "/big", bigBody, bigKind, 200, []file{{home + "/big", string(big)}}},
		{"multipart with names", "", manyBody, many, 200, []file{{home + "/m/a.txt", "a"}, {home + "/m/sub/b.txt", "b"}}},
		{"same path twice", "", twiceBody, twice, 400, nil},
		{"part without a name", "", namelessBody, nameless, 400, nil},
		{"raw without path", "", "x", octet, 400, nil},
		{"other content type", home + "/x", "{}", []string{"Content-Type", "application/json"}, 400, nil},
		{"no content type", home + "/x", "x", nil, 400, nil},
		{"bad gzip", home + "/x", "not gzip", append([]string{"Content-Encoding", "gzip"}, octet...), 400, nil},
		{"cut gzip", home + "/x", zipped.String()[:1000], append([]string{"Content-Encoding", "gzip"}, octet...), 400, nil},
		{"other coding", home + "/x", "x", append([]string{"Content-Encoding", "br"}, octet...), 400, nil},
		{"cut multipart", home + "/x", bigBody[:100000], bigKind, 400, nil},
		{"directory", home, "x", octet, 400, nil},
		{"below a file", home + "/isfile/x", "x", octet, 400, nil},
		{"fifo", home + "/fifo", "x", octet, 400, nil},
		{"NUL", "/a\x00", "x", octet, 400, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			link := "/files"
			if tt.path != "" {
				link = filesURL(tt.path)
			}
			code, body, _ := b.request(t, "POST", link, tt.body, append(tt.header, withToken...)...)
			if code != tt.code {
				t.Fatalf("got %d %.200s, want %d", code, body, tt.code)
			}
			if code != 200 {
				if !strings.HasPrefix(body, fmt.Sprintf(`{"code":%d,"message":"`, code)) {
					t.Errorf("error body = %s", body)
				}
				if _, err := os.Lstat(home + "/x"); err == nil {
					t.Error("a failed upload left its new file behind")
				}
				return
			}
			var answer, want []map[string]string
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				t.Fatalf("body %s: %v", body, err)
			}
			for _, f := range tt.files {
				want = append(want, map[string]string{"path": f.Path, "name": filepath.Base(f.Path), "type": "file"})
				got, err := os.ReadFile(f.Path)
				if err != nil || string(got) != f.Content {
					t.Errorf("%s: %d bytes, %v; want %d", f.Path, len(got), err, len(f.Content))
				}
			}
			if diff := cmp.Diff(want, answer); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUploadOwnership(t *testing.T) {
	t.Parallel()
	daemon := needRoot(t)
	b := start(t, nil)
	write(t, b.home+"/existing", "something longer than what comes")
	if err := os.Chmod(b.home+"/existing", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{b.home + "/existing", b.home + "/p/q/new"} {
		code, body, _ := b.request(t, "POST", filesURL(path, "username", "daemon"), "short",
			append([]string{"Content-Type", "application/octet-stream"}, withToken...)...)
		if code != 200 {
			t.Fatalf("upload = %d %s", code, body)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "short" {
			t.Errorf("%s = %q, %v", path, got, err)
		}
	}
	for path, mode := range map[string]uint32{"/existing": 0o100600, "/p/q/new": 0o100644, "/p": 0o40755, "/p/q": 0o40755} {
		var st syscall.Stat_t
		if err := syscall.Stat(b.home+path, &st); err != nil || itoa(st.Uid) != daemon.Uid || itoa(st.Gid) != daemon.Gid || st.Mode != mode {
			t.Errorf("%s: %d:%d %o, %v; want %s:%s %o", path, st.Uid, st.Gid, st.Mode, err, daemon.Uid, daemon.Gid, mode)
		}
	}
	// Relative paths are the home's.
	code, body, _ := b.request(t, "GET", filesURL("no/such/file", "username", "daemon"), "", withToken...)
	if want := fmt.Sprintf("path '%s/no/such/file' does not exist", daemon.HomeDir); code != 404 || !strings.Contains(body, want) {
		t.Errorf("GET = %d %s, want %s", code, body, want)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	octet := []string{"Content-Type", "application/octet-stream", "X-Access-Token", token}
	upload := func(path string, header ...string) (int, string) {
		code, body, _ := b.request(t, "POST", filesURL(path), "x", append(header, octet...)...)
		return code, body
	}
	stat := func(path string) map[string]string {
		t.Helper()
		got, err := b.files.Stat(t.Context(), connect.NewRequest(&pb.StatRequest{Path: path}))
		if err != nil {
			t.Fatal(err)
		}
		return got.Msg.GetEntry().GetMetadata()
	}
	path := b.home + "/f"
	code, body := upload(path, "X-Metadata-Author", "mish", "X-Metadata-two-words", "a b")
	if code != 200 || !strings.Contains(body, `"metadata":{"author":"mish","two-words":"a b"}`) {
		t.Fatalf("upload = %d %s", code, body)
	}
	want := map[string]string{"author": "mish", "two-words": "a b"}
	if diff := cmp.Diff(want, stat(path)); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if err := unix.Setxattr(path, "user.e2b.tool", []byte("other"), 0); err == nil {
		_ = unix.Setxattr(path, "user.elsewhere", []byte("x"), 0)
		want["tool"] = "other"
		if diff := cmp.Diff(want, stat(path)); diff != "" {
			t.Errorf("metadata with other tools' (-want +got):\n%s", diff)
		}
	}
	if _, err := b.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: path, Destination: path + "2"})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, stat(path+"2")); diff != "" {
		t.Errorf("metadata after a move (-want +got):\n%s", diff)
	}
	if code, _ := upload(path+"2", "X-Metadata-Fresh", "1"); code != 200 || !cmp.Equal(stat(path+"2"), map[string]string{"fresh": "1"}) {
		t.Errorf("metadata after replacing = %v", stat(path+"2"))
	}
	if code, _ := upload(path + "2"); code != 200 || len(stat(path+"2")) != 0 {
		t.Errorf("metadata after clearing = %v", stat(path+"2"))
	}
	for name, h := range map[string][]string{
		"long key":    {"X-Metadata-" + strings.Repeat("k", 247), "v"},
		"too much":    {"X-Metadata-K", strings.Repeat("v", 4096)},
		"not ascii":   {"X-Metadata-K", "ü"},
		"control":     {"X-Metadata-K", "a\tb"},
		"without key": {"X-Metadata-", "v"},
	} {
		if code, body := upload(b.home+"/bad", h...); code != 400 {
			t.Errorf("%s: %d %s, want 400", name, code, body)
		}
	}
	if _, err := os.Lstat(b.home + "/bad"); err == nil {
		t.Error("a refused upload wrote its file")
	}
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	needRoot(t)
	b := start(t, nil)
	small := b.home + "/small"
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	code, body, _ := b.request(t, "POST", filesURL(small+"/f"), strings.Repeat("x", 1<<20),
		append([]string{"Content-Type", "application/octet-stream"}, withToken...)...)
	if code != http.StatusInsufficientStorage || !strings.HasPrefix(body, `{"code":507,`) {
		t.Errorf("upload = %d %s, want 507", code, body)
	}
	if _, err := os.Lstat(small + "/f"); err == nil {
		t.Error("a half-written file is left")
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	write(t, b.home+"/a", "A")
	write(t, b.home+"/b", "B")
	compose := func(body string) (int, string) {
		code, text, _ := b.request(t, "POST", "/files/compose", body, append([]string{"Content-Type", "application/json"}, withToken...)...)
		return code, text
	}
	code, body := compose(fmt.Sprintf(`{"source_paths":["%[1]s/a","%[1]s/b","%[1]s/a"],"destination":"%[1]s/a"}`, b.home))
	if got, _ := os.ReadFile(b.home + "/a"); code != 200 || string(got) != "ABA" {
		t.Errorf("compose = %d %s, file %q", code, body, got)
	}
	for body, want := range map[string]int{
		`{`: 400, `{}`: 400,
		fmt.Sprintf(`{"source_paths":["%[1]s/none"],"destination":"%[1]s/c"}`, b.home): 404,
		fmt.Sprintf(`{"source_paths":["%[1]s"],"destination":"%[1]s/c"}`, b.home):      400,
		fmt.Sprintf(`{"source_paths":["%[1]s/a"],"destination":"%[1]s"}`, b.home):      400,
	} {
		if code, text := compose(body); code != want {
			t.Errorf("compose %s = %d %s, want %d", body, code, text, want)
		}
	}
	left, _ := os.ReadDir(b.home)
	if len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err) // no such family here
			continue
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				body, _ := io.ReadAll(c) // until the client's half close
				_, _ = c.Write(append([]byte("echo "), body...))
				_ = c.Close()
			}
		}()
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		ticket, err := b.control.Dial(limited(t), port)
		if err != nil {
			t.Fatalf("Dial(%s) = %v", l.Addr(), err)
		}
		if got := b.redeem(t, ticket[:], "hello"); got != "echo hello" {
			t.Errorf("%s: through the ticket: %q", address, got)
		}
		if got := b.redeem(t, ticket[:], "again"); got != "" {
			t.Errorf("%s: a used ticket answered %q", address, got)
		}
		// A ticket is part of the identity that a checkpoint must not have.
		if ticket, err = b.control.Dial(limited(t), port); err != nil {
			t.Fatal(err)
		}
		if err := b.control.Freeze(limited(t)); err != nil {
			t.Fatal(err)
		}
		if got := b.redeem(t, ticket[:], "late"); got != "" {
			t.Errorf("%s: a ticket from before a checkpoint answered %q", address, got)
		}
		_ = l.Close()
		if _, err := b.control.Dial(limited(t), port); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Dial of a closed port = %v", err)
		}
	}
	if got := b.redeem(t, make([]byte, 16), "x"); got != "" {
		t.Errorf("a wrong ticket answered %q", got)
	}
}

// redeem shows a ticket, sends text, half-closes and returns the answer.
func (b *box) redeem(t *testing.T, ticket []byte, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", b.tickets)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = c.Write(append(bytes.Clone(ticket), text...))
	_ = c.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(c) // a refusal may be a reset
	return string(answer)
}
