package tlscert_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/ingress/tlscert"
)

func leafOf(t *testing.T, cfg *tls.Config) *x509.Certificate {
	t.Helper()
	c, err := cfg.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestSelfSigned(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	cfg, caPath, err := tlscert.SelfSigned(dir, []string{"Box.Example:3000"}, []netip.Addr{netip.MustParseAddr("192.0.2.9")})
	if err != nil {
		t.Fatal(err)
	}
	pemCA, err := os.ReadFile(caPath)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pemCA) {
		t.Fatal("the CA file holds no certificate")
	}
	leaf := leafOf(t, cfg)
	for _, name := range []string{
		"box.example", "api.box.example", "49983-iabc.box.example", "localhost", "3000-iabc.localhost",
		"127.0.0.1", "::1", "192.0.2.9",
	} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("Verify(%q) = %v", name, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "other.example", Roots: roots}); err == nil {
		t.Error("the certificate is good for a foreign name")
	}
	info, err := os.Stat(filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key = %v, want 0600", info.Mode().Perm())
	}

	again, _, err := tlscert.SelfSigned(dir, []string{"second.example"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leafOf(t, again).Verify(x509.VerifyOptions{DNSName: "api.second.example", Roots: roots}); err != nil {
		t.Errorf("after a restart the authority is another: %v", err)
	}
}

func TestSelfSignedRefusesAReadableKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, _, err := tlscert.SelfSigned(dir, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "ca-key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tlscert.SelfSigned(dir, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("SelfSigned with a readable key = %v, want failed precondition", err)
	}
}

func TestSelfSignedRenewsWhileRunning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg, _, err := tlscert.SelfSigned(t.TempDir(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := leafOf(t, cfg)
		time.Sleep(80 * 24 * time.Hour)
		second := leafOf(t, cfg)
		if !second.NotAfter.After(first.NotAfter) {
			t.Errorf("after 80 days the certificate still ends %v", second.NotAfter)
		}
	})
}

// issue writes a certificate and key of a fresh authority as server files.
func issue(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	made := t.TempDir()
	if _, _, err := tlscert.SelfSigned(made, nil, nil); err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for from, to := range map[string]string{"ca.pem": cert, "ca-key.pem": key} {
		b, err := os.ReadFile(filepath.Join(made, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestFilesReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cert, key := issue(t, dir)
		cfg, err := tlscert.Files(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		first := leafOf(t, cfg)

		if err := os.WriteFile(key, []byte("half written"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := leafOf(t, cfg); !got.Equal(first) {
			t.Error("a broken renewal replaced the certificate")
		}

		issue(t, dir)
		time.Sleep(time.Minute)
		if got := leafOf(t, cfg); got.Equal(first) {
			t.Error("the renewed certificate was not taken up")
		}
	})
}

func TestFilesNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	if _, err := tlscert.Files(filepath.Join(t.TempDir(), "none.pem"), "x"); err == nil {
		t.Error("Files without files = nil error")
	}
}
