// Package oci gets container images and makes root filesystems of them: from
// registries, with mirrors and aliases that the operator names, and from local
// tar files and layouts, which only the operator can name. Layers go from the
// wire through the limits of package erofs into one image; nothing is unpacked.
// What was made is found again by the digest of the image's manifest.
//
// A registry's address comes from users and is dialled by the server: addresses
// that are not public are refused unless the operator allows them.
package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// What an alias may mean besides another image.
const (
	// TemplatePrefix begins the name of a template.
	TemplatePrefix = "template:"
	// LayoutPrefix begins the directory of an OCI layout, TarPrefix a tar file as
	// `docker save` writes it; both are absolute paths on the server.
	LayoutPrefix = "oci:"
	TarPrefix    = "tar:"
)

const (
	dialTimeout   = 30 * time.Second
	headerTimeout = time.Minute
	maxRef        = 1024
)

// Options are what a Puller works with. Dir and Images must be set.
type Options struct {
	// Dir keeps which manifest became which root filesystem.
	Dir    string
	Images *image.Store
	// Aliases say what an image's name means: another image, or one of the
	// prefixes above.
	Aliases map[string]string
	// Mirrors are asked in place of a registry: docker.io: mirror.example:5000,
	// perhaps with a path. Users' credentials are not sent to them.
	Mirrors map[string]string
	// Insecure are the registries, with port, that are spoken to without TLS.
	Insecure []string
	// AllowPrivate are the addresses that are not public and may be dialled.
	AllowPrivate []netip.Prefix
	// Templates finds a template that an alias means; nil for none.
	Templates func(ctx context.Context, name string) (template.Build, error)
	// Limits bound one image; zero fields mean the defaults of package erofs.
	Limits erofs.Limits
}

// Puller implements builder.Puller. Safe for concurrent use.
type Puller struct {
	o         Options
	index     *index
	transport *http.Transport
}

var _ builder.Puller = (*Puller)(nil)

// New prepares a puller and its directory.
func New(o Options) (*Puller, error) {
	for from, to := range o.Aliases {
		if err := checkAlias(to); err != nil {
			return nil, fmt.Errorf("alias %s: %w", from, err)
		}
	}
	for from, to := range o.Mirrors {
		if _, err := name.NewRepository(to+"/x", name.StrictValidation); err != nil {
			return nil, fmt.Errorf("mirror of %s: %q is not a registry: %w", from, to, errdefs.ErrInvalidArgument)
		}
	}
	ix, err := newIndex(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("image index: %w", err)
	}
	p := &Puller{o: o, index: ix}
	p.transport = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout, ControlContext: p.mayDial}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       dialTimeout,
		ForceAttemptHTTP2:     true,
	}
	return p, nil
}

func checkAlias(to string) error {
	for _, prefix := range []string{LayoutPrefix, TarPrefix} {
		if path, ok := strings.CutPrefix(to, prefix); ok {
			if !strings.HasPrefix(path, "/") {
				return fmt.Errorf("%q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
			}
			return nil
		}
	}
	if strings.HasPrefix(to, TemplatePrefix) {
		return nil
	}
	if _, err := name.ParseReference(to); err != nil {
		return fmt.Errorf("%q is not an image: %w", to, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Close ends connections that wait for a next request.
func (p *Puller) Close() { p.transport.CloseIdleConnections() }

// errPrivate says that a registry is at an address that is not public.
type errPrivate struct{ addr, reason string }

func (e *errPrivate) Error() string {
	return fmt.Sprintf("%s is a %s; the operator can allow it in images.allow_private", e.addr, e.reason)
}

// mayDial judges the very address that is about to be dialled.
func (p *Puller) mayDial(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %q: %w", address, err)
	}
	addr := egress.Unwrap(ap.Addr())
	if slices.ContainsFunc(p.o.AllowPrivate, func(n netip.Prefix) bool { return n.Contains(addr) }) {
		return nil
	}
	if reason := egress.Special(addr); reason != "" {
		return &errPrivate{addr.String(), reason}
	}
	return nil
}

// Pull implements builder.Puller. Errors: errdefs.ErrInvalidArgument for a name
// that is none, a damaged or hostile image, or one that cannot be a sandbox's;
// ErrNotFound; ErrPermissionDenied when credentials are needed or wrong;
// ErrResourceExhausted beyond a limit; ErrUnavailable when the registry cannot
// be reached.
func (p *Puller) Pull(ctx context.Context, src template.ImageSource, log func(string)) (builder.Base, error) {
	if len(src.Ref) > maxRef {
		return builder.Base{}, fmt.Errorf("the image's name has %d bytes: %w", len(src.Ref), errdefs.ErrInvalidArgument)
	}
	to, aliased := p.alias(src.Ref)
	if aliased {
		if template, ok := strings.CutPrefix(to, TemplatePrefix); ok {
			return p.fromTemplate(ctx, src.Ref, template)
		}
		if path, ok := strings.CutPrefix(to, LayoutPrefix); ok {
			return p.local(ctx, src.Ref, path, openLayout, log)
		}
		if path, ok := strings.CutPrefix(to, TarPrefix); ok {
			return p.local(ctx, src.Ref, path, openTar, log)
		}
	}
	return p.remote(ctx, src, to, log)
}

// alias looks a name up as it was given and in its shortest form.
func (p *Puller) alias(ref string) (string, bool) {
	plain := strings.TrimPrefix(strings.TrimSuffix(ref, ":latest"), "docker.io/")
	for _, form := range []string{ref, plain, strings.TrimPrefix(plain, "library/")} {
		if to, ok := p.o.Aliases[form]; ok {
			return to, true
		}
	}
	return ref, false
}

func (p *Puller) fromTemplate(ctx context.Context, ref, name string) (builder.Base, error) {
	if p.o.Templates == nil {
		return builder.Base{}, fmt.Errorf("image %s means template %s, and there are no templates: %w", ref, name, errdefs.ErrNotFound)
	}
	b, err := p.o.Templates(ctx, name)
	if err != nil {
		return builder.Base{}, fmt.Errorf("image %s means template %s: %w", ref, name, err)
	}
	if b.Sandbox != "" {
		return builder.Base{}, fmt.Errorf("image %s means %s, which is a snapshot: %w", ref, name, errdefs.ErrInvalidArgument)
	}
	return builder.Base{Rootfs: b.Rootfs, Name: ref + ", which is template " + name, User: b.User, Workdir: b.Workdir, Env: b.Env}, nil
}

// remote pulls from a registry or its mirror.
func (p *Puller) remote(ctx context.Context, src template.ImageSource, to string, log func(string)) (builder.Base, error) {
	ref, err := p.reference(to)
	if err != nil {
		return builder.Base{}, err
	}
	auth := authn.Anonymous
	mirrored, ok := p.mirror(ref)
	if ok {
		if ref, err = p.reference(mirrored); err != nil {
			return builder.Base{}, err
		}
	} else if src.Username != "" || src.Password != "" {
		auth = &authn.Basic{Username: src.Username, Password: src.Password}
	}
	img, err := remote.Image(ref,
		remote.WithContext(ctx), remote.WithTransport(p.transport), remote.WithAuth(auth), remote.WithPlatform(platform()),
		remote.WithUserAgent("caisson"), remote.WithRetryBackoff(remote.Backoff{Duration: time.Second, Factor: 2, Steps: 3}),
	)
	if err != nil {
		return builder.Base{}, explain(ctx, src.Ref, err)
	}
	b, err := p.convert(ctx, src.Ref, ref.Context().Name(), img, log)
	if err != nil {
		return b, explain(ctx, src.Ref, err)
	}
	return b, nil
}

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

func (p *Puller) reference(s string) (name.Reference, error) {
	ref, err := name.ParseReference(s)
	if err == nil && slices.Contains(p.o.Insecure, ref.Context().RegistryStr()) {
		ref, err = name.ParseReference(s, name.Insecure)
	}
	if err != nil {
		return nil, fmt.Errorf("%.200q is not the name of an image: %w", s, errdefs.ErrInvalidArgument)
	}
	return ref, nil
}

// mirror returns the name that an image has at the mirror of its registry.
func (p *Puller) mirror(ref name.Reference) (string, bool) {
	registry := ref.Context().RegistryStr()
	to, ok := p.o.Mirrors[registry]
	if !ok && registry == name.DefaultRegistry {
		to, ok = p.o.Mirrors["docker.io"]
	}
	if !ok {
		return "", false
	}
	separator := ":"
	if _, ok := ref.(name.Digest); ok {
		separator = "@"
	}
	return to + "/" + ref.Context().RepositoryStr() + separator + ref.Identifier(), true
}

// explain gives an error of a registry its kind, and words that say what to do.
func explain(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if private, ok := errors.AsType[*errPrivate](err); ok {
		return &failure{fmt.Sprintf("image %s: %v", ref, private), errdefs.ErrPermissionDenied, err}
	}
	if t, ok := errors.AsType[*transport.Error](err); ok {
		switch t.StatusCode {
		case http.StatusNotFound:
			return &failure{fmt.Sprintf("image %s does not exist, or needs credentials", ref), errdefs.ErrNotFound, err}
		case http.StatusUnauthorized, http.StatusForbidden:
			return &failure{fmt.Sprintf("image %s needs credentials, or those given are wrong", ref), errdefs.ErrPermissionDenied, err}
		case http.StatusTooManyRequests:
			return &failure{fmt.Sprintf("the registry of image %s refuses more requests for now", ref), errdefs.ErrUnavailable, err}
		}
		return &failure{fmt.Sprintf("the registry of image %s answered with status %d", ref, t.StatusCode), errdefs.ErrUnavailable, err}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return &failure{fmt.Sprintf("the registry of image %s cannot be reached: %v", ref, op.Err), errdefs.ErrUnavailable, err}
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	return fmt.Errorf("image %s: %w", ref, err)
}

// failure is an error for the build's author: its text stands alone.
type failure struct {
	text        string
	kind, cause error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return []error{f.kind, f.cause} }

func refuse(format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument, nil}
}

// local makes a root filesystem of an image on this machine.
func (p *Puller) local(ctx context.Context, ref, path string, open func(string) (v1.Image, error), log func(string)) (builder.Base, error) {
	img, err := open(path)
	if errors.Is(err, os.ErrNotExist) {
		return builder.Base{}, &failure{fmt.Sprintf("image %s: there is no %s", ref, path), errdefs.ErrNotFound, err}
	}
	if err != nil {
		return builder.Base{}, fmt.Errorf("image %s: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	b, err := p.convert(ctx, ref, path, img, log)
	if err != nil {
		return b, explain(ctx, ref, err)
	}
	return b, nil
}

func openTar(path string) (v1.Image, error) { return tarball.ImageFromPath(path, nil) }

// openLayout opens the image of a layout: its only one, or that of this
// platform.
func openLayout(path string) (v1.Image, error) {
	ix, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, err
	}
	return fromIndex(ix, 0)
}

// maxNesting bounds indexes within indexes.
const maxNesting = 4

func fromIndex(ix v1.ImageIndex, depth int) (v1.Image, error) {
	m, err := ix.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Platform != nil && !d.Platform.Satisfies(platform()) {
			continue
		}
		switch {
		case d.MediaType.IsImage():
			return ix.Image(d.Digest)
		case d.MediaType.IsIndex() && depth < maxNesting:
			inner, err := ix.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			return fromIndex(inner, depth+1)
		}
	}
	return nil, fmt.Errorf("it has no image for %s/%s", platform().OS, platform().Architecture)
}
