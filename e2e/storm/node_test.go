package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/e2e/netns"
)

// bridge is the node's.
const bridge = "cni0"

// node is a node's network namespace with the runtime that calls the plugin.
type node struct {
	t       *testing.T
	ns      *netns.NS
	program string
	dataDir string
	count   count

	mu    sync.Mutex          // guards what follows
	last  int                 // number of the last pod
	live  map[string]*pod     // container ID → pod whose ADD was acknowledged, and for which no DEL was called
	hold  map[netip.Addr]*pod // address → its pod among live
	clean []*netns.NS         // sandboxes of pods whose DEL was acknowledged
}

// pod is a container's sandbox and what the runtime knows of it.
type pod struct {
	id     string
	ns     *netns.NS
	result *types100.Result // of an ADD that was acknowledged
}

func newNode(t *testing.T, binDir string) *node {
	return &node{
		t:       t,
		ns:      netns.NewT(t),
		program: filepath.Join(binDir, "fairlead-cni"),
		dataDir: filepath.Join(t.TempDir(), "ipam"),
		live:    map[string]*pod{},
		hold:    map[netip.Addr]*pod{},
	}
}

// network is the configuration. Its ranges are more than what pods that are
// killed in one round can hold, and so few that all rounds together use each
// address several times.
func (n *node) network() map[string]any {
	type object = map[string]any
	return object{
		"cniVersion": "1.1.0", "name": network, "type": "fairlead-cni",
		"bridge": bridge, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true, "macspoofchk": true,
		"ipam": object{
			"type": "fairlead-ipam", "dataDir": n.dataDir,
			"ranges": [][]object{
				{{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "rangeEnd": "10.99.0.169"}},
				{{"subnet": "fd99::/64", "rangeStart": "fd99::10", "rangeEnd": "fd99::af"}},
			},
		},
	}
}

const network = "storm"

// newPod has a sandbox of its own, new or one that DEL has left clean. Others
// are kept as they are, with what a lost pod has in it, until the test ends: so
// GC has to find it.
func (n *node) newPod() *pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last++
	p := &pod{id: fmt.Sprintf("pod-%d", n.last)}
	if last := len(n.clean) - 1; last >= 0 {
		p.ns, n.clean = n.clean[last], n.clean[:last]
		return p
	}
	ns, err := netns.New()
	if err != nil {
		panic(err)
	}
	n.t.Cleanup(func() { _ = ns.Close() })
	p.ns = ns
	return p
}

// add calls ADD. When that is acknowledged nobody else may hold the addresses.
func (n *node) add(p *pod, o order) {
	out, err := n.call("ADD", p, o, n.network())
	if errors.Is(err, errKilled) {
		return
	}
	if err != nil {
		n.t.Errorf("ADD of %s: %v", p.id, err)
		return
	}
	var result types100.Result
	if err := json.Unmarshal(out, &result); err != nil {
		n.t.Errorf("ADD of %s: %v in %s", p.id, err, out)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p.result = &result
	n.live[p.id] = p
	for _, addr := range p.addresses() {
		if other := n.hold[addr]; other != nil {
			n.t.Errorf("%s was given to %s and is held by %s", addr, p.id, other.id)
		}
		n.hold[addr] = p
	}
}

// del calls DEL. From its beginning others may be given the addresses.
func (n *node) del(p *pod, o order) {
	n.forget(p)
	_, err := n.call("DEL", p, o, n.network())
	if errors.Is(err, errKilled) {
		return
	}
	if err != nil {
		n.t.Errorf("DEL of %s: %v", p.id, err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.ns != nil {
		n.clean = append(n.clean, p.ns)
		p.ns = nil // another DEL, after a kill that was too late, is for a sandbox that is gone
	}
}

func (n *node) forget(p *pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.live, p.id)
	for _, addr := range p.addresses() {
		delete(n.hold, addr)
	}
}

// gc calls GC with the pods that live.
func (n *node) gc(t *testing.T) {
	t.Helper()
	type attachment struct {
		ID     string `json:"containerID"`
		IfName string `json:"ifname"`
	}
	valid := []attachment{}
	for id := range n.live {
		valid = append(valid, attachment{id, ifName})
	}
	conf := n.network()
	conf["cni.dev/valid-attachments"] = valid
	if _, err := n.call("GC", &pod{}, order{}, conf); err != nil {
		t.Errorf("GC: %v", err)
	}
}

// delAll calls DEL for the pods that live.
func (n *node) delAll() {
	for _, id := range slices.Collect(maps.Keys(n.live)) {
		n.del(n.live[id], order{})
	}
}

// addresses are those of the pod, none if its ADD was not acknowledged.
func (p *pod) addresses() []netip.Addr {
	if p.result == nil {
		return nil
	}
	var addrs []netip.Addr
	for _, ip := range p.result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	return addrs
}
