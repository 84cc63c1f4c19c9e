// Package tlscert finds the certificates of the listener: from files that an
// operator renews, or from a certificate authority of this installation's own.
package tlscert

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// checkEvery bounds how long a renewed certificate waits to be used.
const checkEvery = 10 * time.Second

// Files serves the certificate of two PEM files and takes up new ones without a
// restart: changed files are read again at a handshake, at most every ten
// seconds. Files that cannot be read then leave the last good certificate in
// use.
func Files(certFile, keyFile string) (*tls.Config, error) {
	f := &files{cert: certFile, key: keyFile}
	if err := f.load(time.Now()); err != nil {
		return nil, err
	}
	return config(f.get), nil
}

func config(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: get,
	}
}

type files struct {
	cert, key string

	mu      sync.Mutex // guards what follows
	current *tls.Certificate
	stamp   [2]stamp
	checked time.Time
}

type stamp struct {
	modified time.Time
	size     int64
}

func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.checked) >= checkEvery {
		_ = f.load(now) // a renewal that is half written is read at the next check
	}
	return f.current, nil
}

// load reads the files if they changed. The caller holds mu or has f alone.
func (f *files) load(now time.Time) error {
	f.checked = now
	var seen [2]stamp
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		seen[i] = stamp{info.ModTime(), info.Size()}
	}
	if f.current != nil && seen == f.stamp {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	f.current, f.stamp = &pair, seen
	return nil
}
