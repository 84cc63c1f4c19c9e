package e2e_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// stockBox makes a sandbox of a stock template, and logs how long that took and
// what it needs when it does nothing.
func stockBox(t *testing.T, name string) testenv.Box {
	t.Helper()
	began := time.Now()
	b, err := shared.Create(t.Context(), map[string]any{"templateID": name, "timeout": 600})
	if status(err) == http.StatusNotFound && name != "minimal" { // the test data has that
		t.Skipf("the template %[1]s is not built: caisson template build %[1]s", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.Kill(context.WithoutCancel(t.Context()), b) })
	if r := sh(t, shared, b, "echo ready"); r.Stdout != "ready\n" {
		t.Fatalf("the first command = %+v", r)
	}
	took := time.Since(began)
	groups, err := shared.Cgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if !strings.Contains(g, b.ID) {
			continue
		}
		for _, file := range []string{"memory.current", "memory.usage_in_bytes"} {
			if n, err := os.ReadFile(filepath.Join(filepath.Dir(g), file)); err == nil {
				bytes, _ := strconv.ParseInt(strings.TrimSpace(string(n)), 10, 64)
				t.Logf("%s: create and first command %s, %d MiB of memory", name, took.Round(time.Millisecond), bytes>>20)
			}
		}
	}
	return b
}

// TestStockFirstCommand logs the median of creating a sandbox and running a first
// command in it, for all stock templates that are built.
func TestStockFirstCommand(t *testing.T) {
	if os.Getenv("CAISSON_TEST_REBUILD") == "" {
		t.Skip("a measurement, for make stock")
	}
	for _, name := range []string{"base", "code-interpreter-v1", "minimal", "node-pdf", "dev", "browser"} {
		var took []time.Duration
		for range 7 {
			began := time.Now()
			b, err := shared.Create(t.Context(), map[string]any{"templateID": name, "timeout": 600})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			r := sh(t, shared, b, "echo ready")
			took = append(took, time.Since(began))
			if err := shared.Kill(t.Context(), b); err != nil || r.Stdout != "ready\n" {
				t.Fatalf("%s: %+v, %v", name, r, err)
			}
		}
		slices.Sort(took)
		t.Logf("%s: create and first command %s, at most %s", name, took[3].Round(time.Millisecond), took[6].Round(time.Millisecond))
	}
}

// works runs a script as the user and wants words in its output.
func works(t *testing.T, b testenv.Box, what, script string, want ...string) {
	t.Helper()
	began := time.Now()
	r := shAs(t, shared, b, "user", "set -e\nmkdir -p ~/"+strings.ReplaceAll(what, " ", "-")+" && cd \"$_\"\n"+script)
	t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	if r.ExitCode != 0 {
		t.Errorf("%s ended with %d: %s%s", what, r.ExitCode, r.Stdout, r.Stderr)
		return
	}
	wantContains(t, what, r.Stdout, want...)
}

func TestStockMinimal(t *testing.T) {
	t.Parallel()
	b := stockBox(t, "minimal")
	works(t, b, "coreutils", `seq 3 | sort -r | tr '\n' ' '; id -un; ps -o comm= -p $$; date +%Z; printf 'x y\n' | awk '{print $2}' | sed s/y/z/; pgrep -x bash >/dev/null && echo found`,
		"3 2 1 user\nbash\nUTC\nz\nfound\n")
	works(t, b, "packages", `dpkg -l | grep -c ^ii; for c in apt perl python3 node curl sudo; do ! command -v $c || exit 1; done; echo none`, "none\n")
	if r := sh(t, shared, b, "touch /etc/of-root && stat -c %U /etc/of-root"); r.Stdout != "root\n" {
		t.Errorf("as root = %+v", r)
	}
}

// rebuilt is what of a lock decides whether two builds are of the same packages.
type rebuilt struct {
	RootfsDigest string
	NPM          string
	Packages     []struct{ Name, Version, Arch string }
}

// TestStockSameDigest builds a template again: of the same packages comes the
// same image, byte by byte. CAISSON_TEST_REBUILD names templates other than
// minimal.
func TestStockSameDigest(t *testing.T) {
	t.Parallel()
	names := "minimal"
	if more := os.Getenv("CAISSON_TEST_REBUILD"); more != "" {
		names = more
	}
	dir, err := os.MkdirTemp(filepath.Dir(os.Getenv("CAISSON_TEST_DATA")), "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name := range strings.SplitSeq(names, ",") {
		var first, second rebuilt
		if err := shared.API(t.Context(), http.MethodGet, "/native/v1/templates/"+name+"/lock", nil, &first); status(err) == http.StatusNotFound && name != "minimal" {
			t.Skipf("the template %[1]s is not built: caisson template build %[1]s", name)
		} else if err != nil {
			t.Fatal(err)
		}
		if len(first.Packages) < 30 {
			t.Fatalf("the lock of %s has %d packages", name, len(first.Packages))
		}
		second = rebuild(t, dir, name)
		if diff := cmp.Diff(first.Packages, second.Packages); diff != "" || first.NPM != second.NPM {
			t.Logf("the mirror has other packages by now:\n%s", diff)
			first, second = second, rebuild(t, dir, name)
		}
		if first.RootfsDigest != second.RootfsDigest {
			t.Errorf("%s of the same packages = %s, then %s", name, first.RootfsDigest, second.RootfsDigest)
		}
	}
}

// rebuild builds a template from packages in a data directory of its own.
func rebuild(t *testing.T, data, name string) (out rebuilt) {
	t.Helper()
	began := time.Now()
	cmd := exec.CommandContext(t.Context(), os.Getenv("CAISSON_TEST_BIN"), "template", "build", name, "--no-cache", "--json", "--data", data)
	cmd.Stderr = t.Output()
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: built in %s", name, time.Since(began).Round(100*time.Millisecond))
	notes, err := os.ReadFile(filepath.Join(data, "images", strings.TrimPrefix(out.RootfsDigest, "sha256:")+".json"))
	if err == nil {
		err = json.Unmarshal(notes, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestStockNodePDF(t *testing.T) {
	t.Parallel()
	b := stockBox(t, "node-pdf")
	works(t, b, "html to pdf", `cat > a.html <<'E'
<meta charset=utf-8><style>@page{size:A5;@bottom-center{content:"Page " counter(page)}} h2{break-before:page}</style><h1>Größe Ελλάδα Київ</h1><p>漢字 かな 한글 नमस्ते 😀</p><h2>Two</h2>
E
weasyprint -q a.html a.pdf
pdfinfo a.pdf | grep -E '^(Pages|Page size)'; pdftotext a.pdf - | grep -E 'Größe|漢字 かな 한글|Page 2'; pdffonts a.pdf | grep -c -i -E 'noto|wenquanyi|ipa|un'`,
		"Pages:           2", "419.", "Größe Ελλάδα Київ", "漢字 かな 한글", "Page 2")
	works(t, b, "from node", `cat > a.js <<'E'
const { execFileSync } = require('node:child_process'), fs = require('node:fs');
fs.writeFileSync('b.html', '<h1>from node ' + 6 * 7 + '</h1>');
execFileSync('weasyprint', ['-q', 'b.html', 'b.pdf']);
console.log(execFileSync('pdftotext', ['b.pdf', '-']).toString());
E
node a.js; npm --version`, "from node 42", "10.")
	works(t, b, "pdf tools", `printf '<p>one' > 1.html; weasyprint -q 1.html 1.pdf; printf '<p>two' > 2.html; weasyprint -q 2.html 2.pdf
qpdf --empty --pages 1.pdf 2.pdf -- both.pdf; qpdf --check both.pdf | tail -1; pdftoppm -r 50 -png both.pdf p; ls p-*.png
gs -q -dNOPAUSE -dBATCH -sDEVICE=pdfwrite -sOutputFile=gs.pdf both.pdf; pdftotext gs.pdf - | tr '\n\f' '  '
img2pdf p-1.png -o i.pdf; pdfinfo i.pdf | grep ^Pages
python3 -c 'import pypdf,reportlab; print(len(pypdf.PdfReader("gs.pdf").pages), "pages")'`, "one", "two", "p-2.png", "Pages:           1", "2 pages")
}

func TestStockDev(t *testing.T) {
	t.Parallel()
	b := stockBox(t, "dev")
	works(t, b, "c and cmake", `cat > a.cc <<'E'
#include <cstdio>
#include <vector>
int twice(int n) { return 2 * n; }
int main() { std::vector<int> v{21}; std::printf("c++ %d\n", twice(v[0])); }
E
printf 'cmake_minimum_required(VERSION 3.20)\nproject(a CXX)\nset(CMAKE_BUILD_TYPE Debug)\nadd_executable(a a.cc)\n' > CMakeLists.txt
cmake -G Ninja -B out >/dev/null && ninja -C out >/dev/null && out/a
printf 'int main(){return 0;}' > b.c && make -s b && ./b && echo made
pkg-config --modversion openssl`, "c++ 42", "made", "3.")
	works(t, b, "gdb and strace", `cd ~/c-and-cmake
gdb -q -batch -ex 'break twice' -ex run -ex bt -ex 'print n' out/a 2>&1
strace -o trace -e trace=write out/a; cat trace`, "#1 ", "$1 = 21", `write(1, "c++ 42\n", 7)`)
	works(t, b, "rust", `cargo -q init --name a . && cargo -q run --offline && rustc --version`, "Hello, world!", "rustc 1.")
	works(t, b, "java", `printf 'record P(int x) {}\nclass A { public static void main(String[] a) { System.out.println("java " + new P(42)); } }' > A.java
javac A.java && java A && mvn -q --version; keytool -list -cacerts -storepass changeit 2>/dev/null | grep -q trustedCertEntry && echo authorities`, "java P[x=42]", "3.8", "authorities\n")
	works(t, b, "python extension", `cat > m.c <<'E'
#include <Python.h>
static struct PyModuleDef d = {PyModuleDef_HEAD_INIT, "m"};
PyMODINIT_FUNC PyInit_m(void) { PyObject *m = PyModule_Create(&d); PyModule_AddIntConstant(m, "n", 42); return m; }
E
gcc -shared -fPIC $(python3-config --includes) m.c -o m.so && python3 -c 'import m; print("extension", m.n)'
python3 -m venv v && v/bin/pip --version && node -p '6*7' && npm --version && git --version`, "extension 42", "pip ", "\n42\n10.", "git version")
}

func TestStockBrowser(t *testing.T) {
	t.Parallel()
	began := time.Now()
	b := stockBox(t, "browser")
	// The browser that was saved renders a page: its script sets the title.
	works(t, b, "first page", `echo '<title>x</title><h1 id=a></h1><script>a.textContent=document.title="made by script "+6*7</script>' > a.html
curl -fsS -X PUT "http://127.0.0.1:9222/json/new?file://$PWD/a.html" >/dev/null
for i in $(seq 500); do curl -fsS http://127.0.0.1:9222/json/list | grep -o 'made by script 42' && exit 0; sleep 0.02; done; exit 1`, "made by script 42")
	t.Logf("from create to the first page in the running browser: %s", time.Since(began).Round(time.Millisecond))
	works(t, b, "screenshot and dom", `cp ../first-page/a.html .
chromium --headless --no-sandbox --screenshot=s.png --window-size=800,600 "file://$PWD/a.html" 2>/dev/null; file s.png
chromium --headless --no-sandbox --dump-dom "file://$PWD/a.html" 2>/dev/null
chromium --headless --print-to-pdf=s.pdf "file://$PWD/a.html" 2>/dev/null; head -c 5 s.pdf`,
		"PNG image data, 800 x", `<h1 id="a">made by script 42</h1>`, "%PDF-")
	works(t, b, "selenium", `cat > s.py <<'E'
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
import time
for attach in True, False:
    t, o = time.time(), webdriver.ChromeOptions()
    if attach: o.debugger_address = "127.0.0.1:9222"
    else: o.add_argument("--headless")
    d = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=o)
    d.get("data:text/html,<p id=a>" + "x" * 6)
    print("attached" if attach else "launched", d.find_element("id", "a").text, "%.1f s" % (time.time() - t))
    d.quit()
E
python3 s.py`, "attached xxxxxx", "launched xxxxxx")
}

// TestStockBrowserDoor: the browser is spoken to by programs, in the sandbox and
// with the traffic token through the data plane, and not by the pages that it shows, though the name of
// its socket is the same in every sandbox of the template.
func TestStockBrowserDoor(t *testing.T) {
	t.Parallel()
	b := stockBox(t, "browser")
	const shake = `path=$(curl -fsS http://127.0.0.1:9222/json/version | grep -o '/devtools/browser/[^"]*')
curl -sS -m 2 -o /dev/null -w '%{http_code}' -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' `
	for header, want := range map[string]string{"X-None: 1": "101", "Origin: http://page.example": "403", "Host: page.example": "500"} {
		r := sh(t, shared, b, shake+`-H '`+header+`' "http://127.0.0.1:9222$path"`)
		if r.Stdout != want {
			t.Errorf("a handshake with %q is answered %q, want %s", header, r.Stdout, want)
		}
	}
	for mask, want := range map[string]int{"": 200, "box.example": 500, "localhost:9222": 200} {
		network := map[string]any{}
		if mask != "" {
			network["maskRequestHost"] = mask
		}
		c, err := shared.Create(t.Context(), map[string]any{"templateID": "browser", "timeout": 600, "network": network})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = shared.Kill(context.WithoutCancel(t.Context()), c) })
		for token, want := range map[string]int{"": http.StatusForbidden, "wrong": http.StatusForbidden, c.TrafficToken: want} {
			if got := knock(t, c, token); got != want {
				t.Errorf("9222 of %s as %q, with the traffic token %q, answers %d, want %d", c.ID, mask, token, got, want)
			}
		}
	}
}

// knock is the answer of a sandbox's DevTools from outside.
func knock(t *testing.T, b testenv.Box, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, shared.URL+"/json/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "9222-" + b.ID + ".localhost"
	if token != "" {
		req.Header.Set("E2b-Traffic-Access-Token", token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}
