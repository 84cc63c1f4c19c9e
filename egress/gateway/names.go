package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/egress"
)

// synthetic is where the addresses live that stand for names inside a sandbox.
var synthetic = netip.MustParsePrefix("198.18.0.0/15")

const syntheticSize = 1 << 17

var errTooManyNames = errors.New("too many names")

// names binds addresses to names for one sandbox. A binding is for ever: an
// address that the guest keeps never comes to mean another name.
type names struct {
	sandboxID string
	store     egress.NameStore
	limit     int
	alloc     chan struct{} // held while an address is given and stored

	mu     sync.Mutex // guards the fields below
	byName map[string]netip.Addr
	byAddr map[netip.Addr]string
	next   uint32
	real   map[netip.Addr]string // real address → the last name it was given for
}

func newNames(id string, store egress.NameStore, limit int, known map[string]netip.Addr) (*names, error) {
	n := &names{
		sandboxID: id, store: store, limit: limit, alloc: make(chan struct{}, 1), next: 1,
		byName: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}, real: map[netip.Addr]string{},
	}
	for name, addr := range known {
		if err := n.add(name, addr); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// add publishes one binding; the caller holds mu or is alone.
func (n *names) add(name string, addr netip.Addr) error {
	addr = addr.Unmap()
	if !synthetic.Contains(addr) {
		return fmt.Errorf("name %s has the address %s, which is not synthetic", name, addr)
	}
	if other, ok := n.byAddr[addr]; ok && other != name {
		return fmt.Errorf("address %s stands for both %s and %s", addr, name, other)
	}
	n.byName[name], n.byAddr[addr] = addr, name
	if i := offset(addr); i >= n.next {
		n.next = i + 1
	}
	return nil
}

func offset(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[1]-18)<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func at(i uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})
}

func (n *names) lookup(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.byName[name]
	return a, ok
}

// name returns the name that a synthetic address stands for.
func (n *names) name(a netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.byAddr[a]
	return name, ok
}

// assign returns the address of a name, giving it one if it has none. The
// binding is stored before it is told to anybody.
func (n *names) assign(ctx context.Context, name string) (netip.Addr, error) {
	if a, ok := n.lookup(name); ok {
		return a, nil
	}
	select {
	case n.alloc <- struct{}{}:
		defer func() { <-n.alloc }()
	case <-ctx.Done():
		return netip.Addr{}, context.Cause(ctx)
	}
	n.mu.Lock()
	a, ok := n.byName[name]
	full := len(n.byName) >= n.limit || n.next >= syntheticSize
	if !ok && !full {
		a = at(n.next)
		n.next++ // also when storing fails: an address is never offered twice
	}
	n.mu.Unlock()
	if ok {
		return a, nil
	}
	if full {
		return netip.Addr{}, errTooManyNames
	}
	if n.store != nil {
		if err := n.store.PutName(ctx, n.sandboxID, name, a); err != nil {
			if !errors.Is(err, errdefs.ErrAlreadyExists) {
				return netip.Addr{}, fmt.Errorf("store address of %s: %w", name, err)
			}
			return n.reload(ctx, name)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return a, n.add(name, a)
}

// reload takes over what another process has stored meanwhile.
func (n *names) reload(ctx context.Context, name string) (netip.Addr, error) {
	known, err := n.store.Names(ctx, n.sandboxID)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("load names: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, a := range known {
		if err := n.add(k, a); err != nil {
			return netip.Addr{}, err
		}
	}
	if a, ok := n.byName[name]; ok {
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("name %s has no address yet: %w", name, errdefs.ErrUnavailable)
}

// saw remembers for the log which name a real address was given for.
func (n *names) saw(a netip.Addr, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.real[a]; !ok && len(n.real) >= n.limit {
		for k := range n.real { // any one: it is only for the log
			delete(n.real, k)
			break
		}
	}
	n.real[a] = name
}

func (n *names) realName(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.real[a]
}
