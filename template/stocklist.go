package template

import (
	"slices"

	"github.com/caisson-dev/caisson/provider"
)

// Names of the stock templates beside BaseName.
const (
	// InterpreterName is the one with the code interpreter in it; it is what E2B's
	// code-interpreter SDKs ask for by default.
	InterpreterName = "code-interpreter-v1"
	MinimalName     = "minimal"
	NodePDFName     = "node-pdf"
	DevName         = "dev"
	BrowserName     = "browser"
)

// StockTemplates returns the templates that EnsureStock builds, in the order in
// which all of them are built: the ones that are wanted most come first.
func StockTemplates() []Stock {
	return []Stock{
		{
			Name: BaseName, About: "shell, Python, Node, git and what agents reach for every day",
			Packages: BasePackages(), room: tempRoom,
		},
		{
			Name:      InterpreterName,
			About:     "the code interpreter: Python, JavaScript, TypeScript, R, Java and Bash, with its libraries",
			Packages:  append(BasePackages(), interpreterPackages()...),
			Start:     "sudo env CAISSON_INTERPRETER_WARM='numpy pandas matplotlib.pyplot' /.caisson/caisson-agent interpreter",
			Ready:     "curl -fsS --max-time 2 -o /dev/null http://localhost:49999/health",
			Resources: provider.Resources{CPUs: 2, MemoryMiB: 2048},
			hooks:     []string{manuals, fontCache},
			room:      5 << 30,
		},
		{
			Name: MinimalName, About: "bash and coreutils alone, for running programs that bring what they need",
			Packages: minimalPackages(), bare: true, room: 512 << 20,
		},
		{
			Name: NodePDFName, About: "base, and what makes, reads and changes PDF files",
			Packages: append(BasePackages(), pdfPackages()...), room: 3 << 30,
		},
		{
			Name: DevName, About: "base, and compilers, build tools and debuggers for C, C++, Rust, Python and Java",
			Packages:  append(BasePackages(), devPackages()...),
			Resources: provider.Resources{CPUs: 2, MemoryMiB: 2048},
			hooks:     []string{manuals},
			room:      6 << 30,
		},
		{
			Name: BrowserName, About: "base, and headless Chromium, running, for Playwright, Puppeteer and Selenium",
			Packages:  append(BasePackages(), browserPackages()...),
			Start:     browserStart,
			Ready:     "curl -fsS --max-time 2 -o /dev/null http://localhost:9222/json/version",
			Resources: provider.Resources{CPUs: 2, MemoryMiB: 2048},
			// DevTools: whoever reaches it has the browser, and every file that it can read.
			PrivatePorts: []uint16{9222},
			Env:          browserEnv(),
			hooks:        []string{browserSettings},
			room:         4 << 30,
		},
	}
}

// StockNames returns the names of StockTemplates.
func StockNames() []string {
	var names []string
	for _, s := range StockTemplates() {
		names = append(names, s.Name)
	}
	return names
}

// interpreterPackages are added to base's: the kernels of every language of the
// code interpreter and the libraries that its users' code imports.
func interpreterPackages() []string {
	return []string{
		// Python
		"python3-ipykernel", "python3-numpy", "python3-pandas", "python3-scipy", "python3-sklearn",
		"python3-matplotlib", "python3-seaborn", "python3-plotly", "python3-nbformat", "python3-pil",
		"python3-openpyxl", "python3-requests", "python3-bs4", "python3-lxml", "python3-sympy", "python3-tabulate",
		"python3-jinja2", "fonts-dejavu-core",
		// JavaScript and TypeScript: node is base's
		"esbuild",
		// R
		"r-base-core", "r-cran-irkernel", "r-cran-jsonlite",
		// Java, with jshell
		"openjdk-17-jdk-headless",
	}
}

// minimalPackages are all of the template "minimal": no package manager beyond
// dpkg, no Perl, no Python. dpkg is what configures the others; usr-is-merged
// stands for usrmerge, which would bring Perl.
func minimalPackages() []string {
	return []string{
		"base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "findutils",
		"grep", "gzip", "hostname", "libc-bin", "mawk", "ncurses-base", "procps", "sed", "tar", "usr-is-merged",
	}
}

// pdfPackages are added to base's. WeasyPrint makes PDF of HTML and CSS, paged
// media included: with what it needs it is a fifth of Chromium, starts in a second,
// and runs no script of the page; the template "browser" is for pages that need
// one. The last two packages stand for larger ones that would do too: SciPy, which
// brings a C++ compiler, and Python's development files.
func pdfPackages() []string {
	return slices.Concat([]string{
		"weasyprint", "poppler-utils", "qpdf", "ghostscript", "img2pdf", "python3-pypdf", "python3-reportlab",
		"python3-munkres", "python3-unicodedata2",
	}, fontPackages())
}

// fontPackages cover Latin, Greek and Cyrillic in the shapes of the common
// commercial fonts, most other scripts, Chinese, Japanese and Korean, and emoji.
func fontPackages() []string {
	return []string{
		"fontconfig", "fonts-dejavu-core", "fonts-liberation2", "fonts-noto-core", "fonts-noto-color-emoji", "fonts-wqy-zenhei",
		"fonts-ipafont-gothic", "fonts-unfonts-core",
	}
}

// devPackages are added to base's. Rust is the one that Debian keeps current for
// building browsers: the suite's own is too old for most of what is published. So
// is its Go, of which there is no other, and which is therefore not here.
func devPackages() []string {
	return []string{
		"autoconf", "automake", "bison", "build-essential", "ccache", "cmake", "flex", "gdb", "libtool", "ninja-build", "pkg-config", "strace",
		"libcurl4-openssl-dev", "libffi-dev", "libpq-dev", "libsqlite3-dev", "libssl-dev", "libxml2-dev", "libxslt1-dev", "zlib1g-dev",
		"cargo-web", "rustc-web",
		"pipx", "python3-dev", "python3-setuptools", "python3-wheel",
		"maven", "openjdk-17-jdk-headless",
		"git-lfs", "gpg", "ripgrep", "rsync", "sqlite3", "tmux",
	}
}

// browserPackages are added to base's; chromium-driver is what Selenium speaks to.
func browserPackages() []string {
	return slices.Concat([]string{"chromium", "chromium-driver", "python3-selenium"}, fontPackages())
}

// browserStart keeps a Chromium running whose memory every sandbox begins with.
const browserStart = "exec chromium --headless --remote-debugging-port=9222 --user-data-dir=/home/user/.config/caisson about:blank"

// browserEnv tells Playwright and Puppeteer that the browser is there, and where.
func browserEnv() map[string]string {
	return map[string]string{
		"CHROME_BIN":                       "/usr/bin/chromium",
		"PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1",
		"PUPPETEER_EXECUTABLE_PATH":        "/usr/bin/chromium",
		"PUPPETEER_SKIP_DOWNLOAD":          "1",
	}
}

// browserSettings gives every start of Chromium the options that it needs in a
// sandbox, and the place where Playwright's channel "chrome" looks for it.
// Chromium's own sandbox is off: it would be a second one inside ours, made of
// what gVisor has no full counterpart of.
const browserSettings = `--customize-hook=mkdir -p "$1/etc/chromium.d" "$1/opt/google/chrome" &&
	echo 'export CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking --disable-component-update --disable-default-apps --disable-domain-reliability --disable-sync --disable-breakpad --disable-crash-reporter --metrics-recording-only --password-store=basic --use-mock-keychain"' > "$1/etc/chromium.d/caisson" &&
	ln -s /usr/bin/chromium "$1/opt/google/chrome/chrome"`

// manuals is a directory that Java's packages put links in, also where manuals
// are left out.
const manuals = `--essential-hook=mkdir -p "$1/usr/share/man/man1"`

// fontCache makes what matplotlib would make at its first import in every new
// sandbox, in seconds; the seed is for the order of its entries.
const fontCache = `--customize-hook=chroot "$1" env HOME=/root PYTHONHASHSEED=0 python3 -c 'import matplotlib.font_manager'`
