// Package sweep removes what is left on a node of pods that live no more and whose
// DEL was lost: addresses held, ports, and what the packet filter has. It is for
// the daemon; what it removes it removes by the verbs of the plugin's modes and of
// its IPAM, as GC does, for whom a runtime tells which pods live. Here a pod lives
// as long as its network namespace.
//
// Other than GC it may run beside ADD and DEL. It holds the network's store while
// it works, and ADD has its row there before it makes anything, and a namespace
// before that: what has no row and no namespace then, no ADD is at work on.
package sweep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/hostlocal"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/ipam"
)

// Network sweeps a network, given as the configuration of its plugin, in the network
// namespace of the calling thread, and returns whose addresses it gave back.
// Networks whose addresses come from another IPAM plugin are left alone: that does
// not say what it holds.
func Network(ctx context.Context, config []byte) ([]ipam.Lease, error) {
	b := broom{config: config, now: time.Now()}
	if err := json.Unmarshal(config, &b.document); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w", err)
	}
	if b.IPAM.Type != ownIPAM {
		return nil, nil
	}
	var err error
	if b.host, err = link.Host(); err != nil {
		return nil, err
	}
	defer b.host.Close()
	var failed error
	gone, err := hostlocal.New().Collect(ctx, config, func(leases []ipam.Lease) (gone []ipam.Lease) {
		gone, failed = b.sweep(leases)
		return gone
	})
	if err = errors.Join(failed, err); err != nil {
		err = fmt.Errorf("network %s: %w", b.Name, err)
	}
	return gone, err
}

const ownIPAM = "fairlead-ipam"

// document is what of a configuration matters here.
type document struct {
	Name string `json:"name"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
}

// broom sweeps one network.
type broom struct {
	document
	config []byte
	host   *link.NS
	now    time.Time
}

// sweep removes what the node has of pods that live no more, and returns whose
// addresses may be given back. After an error nobody's may.
func (b broom) sweep(leases []ipam.Lease) ([]ipam.Lease, error) {
	ports, err := bridge.Ports(b.host, b.Name)
	if err != nil {
		return nil, err
	}
	var config bridge.Config
	_ = json.Unmarshal(b.config, &config) // as in DEL: of a value of the wrong type only that value is lost
	alive, gone, err := b.divide(leases, ports)
	if err != nil {
		return nil, err
	}
	strays := slices.DeleteFunc(slices.Clone(ports), func(port string) bool { return holds(leases, port) })
	if len(strays) == 0 {
		return gone, config.GC(b.host, b.Name, b.owners(alive))
	}
	// The store was lost, as it seems, and they may be of any pods that live: so
	// may be all else that nobody holds.
	for _, owner := range b.owners(gone) {
		if _, err := config.Del(b.host, owner); err != nil {
			return nil, err
		}
	}
	return gone, fmt.Errorf("%d ports (%s, …) are of pods that hold no address: they stay, see 'fairlead ipam check'",
		len(strays), strays[0])
}

func (b broom) owners(leases []ipam.Lease) []mode.Owner {
	var owners []mode.Owner
	for _, l := range leases {
		owners = append(owners, mode.Owner{Network: b.Name, ContainerID: l.ContainerID, IfName: l.IfName})
	}
	return owners
}

// holds reports whether a port is of one of the leases.
func holds(leases []ipam.Lease, port string) bool {
	return slices.ContainsFunc(leases, func(l ipam.Lease) bool { return portOf(l) == port })
}

func portOf(l ipam.Lease) string { return bridge.PortName(l.ContainerID, l.IfName) }

// divide tells the living from the dead.
func (b broom) divide(leases []ipam.Lease, ports []string) (alive, gone []ipam.Lease, err error) {
	connected := false // one of the dead has a port
	seen := false      // the namespace of one of the living is seen
	for _, l := range leases {
		hasPort := slices.Contains(ports, portOf(l))
		switch b.look(l.Netns) {
		case present:
			alive, seen = append(alive, l), true
		case absent:
			gone, connected = append(gone, l), connected || hasPort
		case unknown:
			// Who was imported has a port that the reference plugin named, and may live
			// for long: only DEL and GC know.
			if l.Netns == "" || hasPort || b.now.Sub(l.Since) < settled || len(ports) == 0 {
				alive = append(alive, l)
			} else {
				gone = append(gone, l)
			}
		}
	}
	// A port goes with the namespace of its pod. One may be kept from going by a
	// process, but not all.
	if connected && !seen {
		return nil, nil, fmt.Errorf("the network namespaces of pods that are connected, as %s, are not to be seen here: nothing is removed",
			gone[0].Netns)
	}
	return alive, gone, nil
}

// settled is how old a row is whose ADD has come to its end, whatever it waited for.
const settled = 10 * time.Minute

// sight is what is seen of a namespace.
type sight int

const (
	present sight = iota
	absent
	unknown
)

// look looks for a pod's namespace. That there is none at its path counts if it
// would be seen there: the directory may not be one that a container shares with
// its host, and what is bound to a path may not be passed on to it.
func (b broom) look(path string) sight {
	if path == "" { // imported
		return unknown
	}
	ns, err := link.Open(path)
	if err == nil {
		defer ns.Close()
		if ns.Same(b.host) {
			return unknown // the path, which has a process in it, is now of another one
		}
		return present
	}
	if !errors.Is(err, link.ErrNoNamespace) {
		return present
	}
	_, atPath := os.Lstat(path)
	_, above := os.Stat(filepath.Dir(path))
	if errors.Is(atPath, fs.ErrNotExist) && above == nil {
		return absent
	}
	return unknown
}
