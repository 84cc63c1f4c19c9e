package tlscert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	caFile    = "ca.pem"
	caKeyFile = "ca-key.pem"

	caLife = 10 * 365 * 24 * time.Hour
	// leafLife stays below what clients accept of a server certificate.
	leafLife = 90 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is replaced.
	renewBefore = 30 * 24 * time.Hour
	// backdate allows for clocks that are behind.
	backdate = time.Hour
)

// SelfSigned serves with certificates from an authority of this installation,
// kept in dir and made on first use (keys with mode 0600). The certificate is
// for each domain, everything directly below it, localhost, everything directly
// below that, and the addresses; it is renewed while the server runs. caPath is
// the file that clients must trust.
func SelfSigned(dir string, domains []string, addrs []netip.Addr) (cfg *tls.Config, caPath string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("certificate authority: %w", err)
	}
	caPath, err = filepath.Abs(filepath.Join(dir, caFile))
	if err != nil {
		return nil, "", fmt.Errorf("certificate authority: %w", err)
	}
	ca, key, err := loadAuthority(dir)
	if errors.Is(err, fs.ErrNotExist) {
		ca, key, err = makeAuthority(dir)
	}
	if err != nil {
		return nil, "", fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	i := &issuer{ca: ca, key: key, names: namesFor(domains), addrs: addrsFor(addrs)}
	if _, err := i.get(nil); err != nil {
		return nil, "", err
	}
	return config(i.get), caPath, nil
}

func namesFor(domains []string) []string {
	out := []string{"localhost", "*.localhost"}
	for _, d := range domains {
		if host, _, err := net.SplitHostPort(d); err == nil {
			d = host
		}
		d = strings.ToLower(strings.TrimSuffix(d, "."))
		if d == "" || slices.Contains(out, d) {
			continue
		}
		out = append(out, d)
		if _, err := netip.ParseAddr(d); err != nil {
			out = append(out, "*."+d)
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { _, err := netip.ParseAddr(s); return err == nil })
}

func addrsFor(addrs []netip.Addr) []net.IP {
	out := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range addrs {
		if a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() {
			out = append(out, net.IP(a.Unmap().AsSlice()))
		}
	}
	return out
}

// issuer makes the server's certificate and remakes it before it ends.
type issuer struct {
	ca    *x509.Certificate
	key   crypto.Signer
	names []string
	addrs []net.IP

	mu      sync.Mutex // guards what follows
	current *tls.Certificate
	exact   map[string]*tls.Certificate // by name below localhost
}

// maxExact bounds the certificates for single names: any client can ask for one.
const maxExact = 1024

func (i *issuer) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if name := belowLocalhost(hello); name != "" {
		return i.getExact(name)
	}
	if i.current != nil && time.Until(i.current.Leaf.NotAfter) > renewBefore {
		return i.current, nil
	}
	c, err := i.issue(i.names, i.addrs)
	if err == nil {
		i.current = c
	}
	return c, err
}

// getExact returns a certificate for one name below localhost: OpenSSL, and with
// it curl and Python, does not accept a wildcard for a top-level domain. The
// caller holds mu.
func (i *issuer) getExact(name string) (*tls.Certificate, error) {
	if c := i.exact[name]; c != nil && time.Until(c.Leaf.NotAfter) > renewBefore {
		return c, nil
	}
	c, err := i.issue([]string{name}, nil)
	if err != nil {
		return nil, err
	}
	if i.exact == nil || len(i.exact) >= maxExact {
		i.exact = map[string]*tls.Certificate{}
	}
	i.exact[name] = c
	return c, nil
}

// belowLocalhost returns the name a client asks for when it is one label below
// localhost, as PORT-ID.localhost is.
func belowLocalhost(hello *tls.ClientHelloInfo) string {
	if hello == nil {
		return ""
	}
	name := strings.ToLower(hello.ServerName)
	label, ok := strings.CutSuffix(name, ".localhost")
	if !ok || label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return ""
	}
	return name
}

func (i *issuer) issue(names []string, addrs []net.IP) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	end := time.Now().Add(leafLife)
	if end.After(i.ca.NotAfter) {
		end = i.ca.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: names[len(names)-1]},
		NotBefore:    time.Now().Add(-backdate),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     names,
		IPAddresses:  addrs,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, i.ca, key.Public(), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, i.ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func makeAuthority(dir string) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	ca := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Caisson local CA (" + host + ")"},
		NotBefore:             time.Now().Add(-backdate),
		NotAfter:              time.Now().Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	// The key comes first: a certificate without its key would never be mended.
	if err := writePEM(filepath.Join(dir, caKeyFile), "PRIVATE KEY", keyDER, 0o600); err != nil {
		return nil, nil, err
	}
	if err := writePEM(filepath.Join(dir, caFile), "CERTIFICATE", der, 0o644); err != nil {
		return nil, nil, err
	}
	return loadAuthority(dir)
}

// loadAuthority is fs.ErrNotExist when there is no certificate yet.
func loadAuthority(dir string) (*x509.Certificate, crypto.Signer, error) {
	der, err := readPEM(filepath.Join(dir, caFile), "CERTIFICATE")
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	keyPath := filepath.Join(dir, caKeyFile)
	info, err := os.Stat(keyPath)
	if err != nil {
		return nil, nil, broken(err.Error())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, nil, broken(keyPath + " may be read by others; run chmod 600 on it")
	}
	if der, err = readPEM(keyPath, "PRIVATE KEY"); err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, broken(caKeyFile + " does not belong to " + caFile)
	}
	if !ca.IsCA || time.Now().After(ca.NotAfter) {
		return nil, nil, broken(caFile + " has expired or is no authority; delete both files to get a new one, and trust that on every client")
	}
	return ca, key, nil
}

func broken(text string) error { return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition) }

func readPEM(path, kind string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, broken(path + " holds no PEM " + kind)
	}
	return block.Bytes, nil
}

// writePEM replaces a file whole or not at all.
func writePEM(path, kind string, der []byte, mode os.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	err = pem.Encode(tmp, &pem.Block{Type: kind, Bytes: der})
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
