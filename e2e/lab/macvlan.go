package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// maxMacvlanNodes is how many nodes have a block of the macvlan pool: so many fit
// the upper three quarters of the underlay's /24.
const maxMacvlanNodes = 11

// The pools of a lab with macvlan, and the block of node number n of each. The
// nodes have their own addresses below.
func macvlanManifest(nodes int) string {
	var b strings.Builder
	for _, p := range macvlanPools {
		fmt.Fprintf(&b, "apiVersion: fairlead.dev/v1alpha1\nkind: IPPool\nmetadata: {name: %s}\nspec: {subnet: %q, rangeStart: %q, blockSize: %d}\n---\n",
			p.name, p.subnet, p.start, p.block(1).Bits())
		for n := range nodes {
			block := p.block(n + 1)
			name := strings.NewReplacer(".", "-", ":", "-").Replace(block.Addr().StringExpanded())
			fmt.Fprintf(&b, "apiVersion: fairlead.dev/v1alpha1\nkind: IPBlock\nmetadata: {name: %s-%d}\nspec: {pool: %s, block: %q, node: %s}\n---\n",
				name, block.Bits(), p.name, block, nodeName(n+1))
		}
	}
	return b.String()
}

// macvlanPool is a pool on the first link of the underlay.
type macvlanPool struct {
	name, subnet, start string
	block               func(n int) netip.Prefix // of node n, counted from 1
}

var macvlanPools = [...]macvlanPool{
	{"lan", "192.168.244.0/24", "192.168.244.64", func(n int) netip.Prefix {
		return netip.MustParsePrefix(fmt.Sprintf("192.168.244.%d/28", 64+16*(n-1)))
	}},
	{"lan6", "fd00:192:168:244::/64", "fd00:192:168:244::1:0", func(n int) netip.Prefix {
		return netip.MustParsePrefix(fmt.Sprintf("fd00:192:168:244::%d:0/112", n))
	}},
}

// macvlanConfig is the second network of the nodes of such a lab: pods on the
// underlay itself.
const macvlanConfig = `{
  "cniVersion": "1.1.0",
  "name": "macvlan",
  "plugins": [
    {
      "type": "fairlead-cni",
      "mode": "macvlan",
      "master": "eth0",
      "ipam": {
        "type": "fairlead-ipam",
        "dataDir": %q,
        "pools": ["lan", "lan6"],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    }
  ]
}
`

// shimFlags have fairlead node and macvlan pods reach each other, and the pods
// virtual IPs and other pods.
var shimFlags = []string{
	"--macvlan-shim", "eth0",
	"--macvlan-shim-cidrs", "10.96.0.0/16,10.244.0.0/16,fd00:10:96::/112,fd00:10:244::/48",
}

func (n *Node) macvlanConfig() string {
	return filepath.Join(n.dir.node(n.Name), "macvlan.conflist")
}

// addMacvlan gives each node the network and the pools.
func (l *Lab) addMacvlan() error {
	for _, n := range l.Nodes {
		if err := writeFile(filepath.Join(n.Manifests(), "pools.yaml"), []byte(macvlanManifest(len(l.Nodes)))); err != nil {
			return err
		}
		if err := writeFile(n.macvlanConfig(), []byte(fmt.Sprintf(macvlanConfig, n.IPAMData()))); err != nil {
			return err
		}
	}
	return nil
}

// AddMacvlanPod is AddPod for a pod on macvlan, in a lab with Options.Macvlan.
func (l *Lab) AddMacvlanPod(ctx context.Context, node *Node, name string) (*Pod, error) {
	if !l.opts.Macvlan {
		return nil, fmt.Errorf("make pod %s: the lab has no macvlan network", name)
	}
	return l.AddPodOf(ctx, node, name, node.macvlanConfig())
}

// tryAgain is how long a runtime waits before it tries again what the plugin could
// not do at the time, as when the node's first block of a pool is on its way.
const tryAgain = 100 * time.Millisecond

// isTransient says that the plugin asked to be tried again later.
func isTransient(err error) bool {
	var coded *types.Error
	return errors.As(err, &coded) && coded.Code == types.ErrTryAgainLater
}
