package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/caisson-dev/caisson/secret"
	"github.com/containerd/errdefs"
)

// Connection says how a command reaches a server.
type Connection struct {
	URL string
	// Key is the API key; KeySource names the variable or file it came from.
	Key       secret.Value
	KeySource string
	// CAFile is the certificate of the local server's own authority, or empty.
	CAFile string
	// Local is set when the server is the one of the data directory.
	Local bool
}

// ConnectInputs are what the command line gives for a connection.
type ConnectInputs struct {
	URL     string // --url
	KeyFile string // --api-key-file
	// Data is the data directory of a local server, for its api-key file.
	Data string
	// Listen and TLS are those of a local server, for its URL.
	Listen string
	TLS    bool
	Env    Environ
}

// Connect finds URL and key: flags first, then CAISSON_API_URL and
// CAISSON_API_KEY, then E2B_API_URL and E2B_API_KEY, then the local server's
// address and DIR/api-key. No key at all is errdefs.ErrFailedPrecondition.
func Connect(in ConnectInputs) (Connection, error) {
	c := Connection{URL: in.URL}
	for _, name := range []string{"CAISSON_API_URL", "E2B_API_URL"} {
		if v, ok := in.Env.Lookup(name); ok && c.URL == "" {
			c.URL = v
		}
	}
	if c.URL == "" {
		c.URL, c.Local = localServer(in), true
	}
	if ca := CAFile(in.Data); exists(ca) {
		c.CAFile = ca
	}
	var err error
	c.Key, c.KeySource, err = findKey(in)
	return c, err
}

// KeyFile is where the first API key of an installation is written.
func KeyFile(data string) string { return filepath.Join(data, "api-key") }

// CAFile is where the self-signed authority's certificate is written.
func CAFile(data string) string { return filepath.Join(data, "tls", "ca.pem") }

// URLFile is where a running server writes its URL for commands on the same
// machine.
func URLFile(data string) string { return filepath.Join(data, "url") }

// localServer is the URL that a running server has written, else where the
// configuration says that it would listen.
func localServer(in ConnectInputs) string {
	if line, err := firstLine(URLFile(in.Data)); err == nil && line != "" {
		return line
	}
	return LocalURL(in.Listen, in.TLS)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func findKey(in ConnectInputs) (secret.Value, string, error) {
	if in.KeyFile != "" {
		return keyFile(in.KeyFile)
	}
	if v, ok := in.Env.Lookup("CAISSON_API_KEY"); ok && v != "" {
		return secret.New(v), "CAISSON_API_KEY", nil
	}
	if v, ok := in.Env.Lookup("CAISSON_API_KEY_FILE"); ok && v != "" {
		return keyFile(v)
	}
	if v, ok := in.Env.Lookup("E2B_API_KEY"); ok && v != "" {
		return secret.New(v), "E2B_API_KEY", nil
	}
	path := KeyFile(in.Data)
	v, from, err := keyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, "", fmt.Errorf("%w: no API key: set CAISSON_API_KEY or E2B_API_KEY, give --api-key-file, or make a server here with \"caisson init\" and then \"caisson serve\" (it writes %s)", errdefs.ErrFailedPrecondition, path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return v, "", fmt.Errorf("%w: the API key file %s belongs to another user: set CAISSON_API_KEY, or run as the server's user", errdefs.ErrPermissionDenied, path)
	}
	return v, from, err
}

func keyFile(path string) (secret.Value, string, error) {
	key, err := firstLine(path)
	if err != nil {
		return secret.Value{}, "", fmt.Errorf("api key file: %w", err)
	}
	if key == "" {
		return secret.Value{}, "", fmt.Errorf("%w: api key file %s is empty", errdefs.ErrInvalidArgument, path)
	}
	return secret.New(key), path, nil
}

// firstLine reads the first line of a small file.
func firstLine(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	return strings.TrimSpace(string(line)), nil
}

// LocalURL is the address of a server on this machine that listens on listen:
// an unspecified host becomes localhost.
func LocalURL(listen string, tls bool) string {
	scheme := "http"
	if tls {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		host, port = listen, ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || (err == nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	if port == "" {
		return scheme + "://" + host
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
