package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/cni/node/install"
)

const poolTemplate = `{"cniVersion": "1.1.0", "name": "macvlan", "plugins": [{
	"type": "fairlead-cni", "mode": "macvlan", "master": "eth0", "mtu": {{.MTU}},
	"ipam": {"type": "fairlead-ipam", "pools": ["lan"]}}]}`

const poolYAML = `
apiVersion: fairlead.dev/v1alpha1
kind: IPPool
metadata: {name: lan}
spec: {subnet: 10.0.0.0/24, rangeStart: 10.0.0.128, blockSize: 28}
`

const blockYAML = `
apiVersion: fairlead.dev/v1alpha1
kind: IPBlock
metadata: {name: 10-0-0-128-28}
spec: {pool: lan, block: 10.0.0.128/28, node: node-1}
`

// With manifests a node has the blocks that IPBlocks assign to it. The runtime may
// make pods when there is one of each pool that its network wants.
func TestNodePools(t *testing.T) {
	r := newNode(t)
	template := filepath.Join(t.TempDir(), "template")
	if err := os.WriteFile(template, []byte(poolTemplate), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start("--conf-template", template)
	r.log.await("network macvlan: this node has no block of pool lan: the cluster has no valid IPPool lan")
	r.write("pool.yaml", strings.Replace(poolYAML, "28", "27", 1))
	r.log.await("network macvlan: this node has no block of pool lan: no further IPBlock of the pool is assigned to node node-1")
	r.write("pool.yaml", strings.Replace(poolYAML, "blockSize: 28", "blockSize: 99", 1))
	r.log.await("IPPool lan: spec.blockSize: 99 is not allowed: blocks of 10.0.0.0/24 can have prefix lengths of 24 to 30")
	r.write("pool.yaml", strings.Replace(poolYAML, "10.0.0.0/24, rangeStart: 10.0.0.128", "10.244.2.0/24", 1))
	r.log.await("IPPool lan: 10.244.2.1-10.244.2.254 overlaps 10.244.2.0/24, the pod CIDR of node node-2: no blocks of it are leased")
	if _, err := os.Stat(filepath.Join(r.conf, install.Conflist)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network configuration is there too early: %v", err)
	}
	r.write("pool.yaml", poolYAML)
	r.write("block.yaml", blockYAML)
	r.log.await("msg=blocks network=macvlan pool=lan blocks=[10.0.0.128/28]")
	r.log.await("msg=connected")
	if config := r.read(filepath.Join(r.conf, install.Conflist)); !strings.Contains(config, `"lan"`) {
		t.Errorf("network configuration:\n%s", config)
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"ipam", "show", "--data-dir", r.data}, testEnv(&out, &out)); code != exitOK ||
		!strings.Contains(out.String(), "macvlan  lan   10.0.0.128-10.0.0.143  16    0     0        16    -") {
		t.Errorf("fairlead ipam show:\n%s", &out)
	}
	if err := os.Remove(filepath.Join(r.dir, "block.yaml")); err != nil {
		t.Fatal(err)
	}
	r.log.await("msg=blocks network=macvlan pool=lan blocks=[] used=0 free=0")
}
