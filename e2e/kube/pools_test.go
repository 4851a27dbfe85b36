package kube_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
	"github.com/fairlead/fairlead/ipam/pool"
	poolkube "github.com/fairlead/fairlead/ipam/pool/kube"
)

var (
	crds   = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	pools  = schema.GroupVersionResource{Group: poolkube.Group, Version: poolkube.Version, Resource: "ippools"}
	blocks = schema.GroupVersionResource{Group: poolkube.Group, Version: poolkube.Version, Resource: "ipblocks"}
)

// installCRDs applies deploy/chart/crds and waits until the API has the kinds.
func installCRDs(t *testing.T, client dynamic.Interface) {
	t.Helper()
	for _, name := range []string{"ippool", "ipblock"} {
		text, err := os.ReadFile("../../deploy/chart/crds/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &o.Object); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Resource(crds).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []schema.GroupVersionResource{pools, blocks} {
		for {
			if _, err := client.Resource(kind).List(t.Context(), metav1.ListOptions{}); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func ipPool(name string, spec map[string]any) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	o.SetAPIVersion(poolkube.Group + "/" + poolkube.Version)
	o.SetKind(pool.KindPool)
	o.SetName(name)
	return o
}

// poolNode is a node that leases blocks, with its store, as fairlead node has it.
type poolNode struct {
	name   string
	dir    string
	source *poolkube.Source
	lessor *pool.Lessor
	nodes  func() map[string]bool
}

// Networks implements pool.Stores.
func (n *poolNode) Networks() ([]string, error) { return disk.Networks(n.dir) }

// Update implements pool.Stores.
func (n *poolNode) Update(ctx context.Context, network string, f func(tx ipam.Tx, boot string) error) error {
	store, err := disk.New(n.dir, network)
	if err != nil {
		return err
	}
	return store.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, "boot"); err != nil {
			return err
		}
		return f(tx, "boot")
	})
}

// addPod allocates an address, and leases blocks until there is one.
func (n *poolNode) addPod(ctx context.Context, id string) (addr netip.Addr, err error) {
	for ctx.Err() == nil {
		err = n.Update(ctx, "macvlan", func(tx ipam.Tx, boot string) error {
			if err := ipam.Want(tx, "lan", time.Now()); err != nil {
				return err
			}
			sets, none := ipam.PoolSets(tx, boot, []string{"lan"})
			if none != nil {
				return nil
			}
			given, full := ipam.Allocate(tx, sets, ipam.Request{Owner: ipam.Owner{ContainerID: id, IfName: "eth0"}, Boot: boot, Now: time.Now()})
			if full == nil {
				addr = given[0].Prefix.Addr()
			}
			return full
		})
		if addr.IsValid() {
			return addr, nil
		}
		n.sync(ctx)
	}
	return addr, fmt.Errorf("pod %s: %w", id, err)
}

// sync is a round of the daemon's. That one fails while the API server is away is
// expected.
func (n *poolNode) sync(ctx context.Context) {
	objects := n.source.Objects()
	settled, _ := pool.Settle(objects.Pools, nil)
	_, _ = n.lessor.Sync(ctx, pool.View{Pools: settled, Blocks: objects.Blocks, Nodes: n.nodes(), Synced: objects.Synced}, time.Now())
	select {
	case <-n.source.Changed():
	case <-time.After(20 * time.Millisecond):
	}
}

// The API server refuses pools that make no sense, and says why.
func TestIPPoolValidation(t *testing.T) {
	s, _ := startServer(t)
	client, err := dynamic.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	installCRDs(t, client)
	for _, tt := range []struct {
		spec map[string]any
		want string // in the error; "": it is accepted
	}{
		{map[string]any{"subnet": "192.168.10.0/24", "blockSize": int64(29), "rangeStart": "192.168.10.64", "gateway": "192.168.10.254"}, ""},
		{map[string]any{"subnet": "fd00:1::/64"}, ""},
		{map[string]any{"subnet": "192.168.10.1/24"}, "must be a subnet without host bits"},
		{map[string]any{"subnet": "lan"}, "must be a subnet without host bits"},
		{map[string]any{"subnet": "192.168.10.0/24", "blockSize": int64(31)}, "blockSize must be a prefix length from that of the subnet to 30"},
		{map[string]any{"subnet": "192.168.10.0/24", "blockSize": int64(20)}, "blockSize must be a prefix length from that of the subnet to 30"},
		{map[string]any{"subnet": "192.168.10.0/24", "rangeStart": "192.168.11.1"}, "rangeStart must be an address of the subnet"},
		{map[string]any{"subnet": "192.168.10.0/24", "gateway": "router"}, "must be an IP address"},
	} {
		t.Run(fmt.Sprint(tt.spec), func(t *testing.T) {
			o := ipPool("lan", tt.spec)
			made, err := client.Resource(pools).Create(t.Context(), o, metav1.CreateOptions{})
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got error %v, want it to say %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			made.Object["spec"].(map[string]any)["subnet"] = "10.0.0.0/24"
			if _, err := client.Resource(pools).Update(t.Context(), made, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
				t.Errorf("changed: error %v", err)
			}
			if err := client.Resource(pools).Delete(t.Context(), "lan", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Eight nodes make pods of one pool, at the same time, through an API server that
// is killed meanwhile: no two pods have one address, and what the objects say is
// what the stores have. A node that is removed loses its blocks to one that needs
// them.
func TestPools(t *testing.T) {
	s, _ := startServer(t)
	client, err := dynamic.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	installCRDs(t, client)
	lan := ipPool("lan", map[string]any{"subnet": "192.168.10.0/25", "blockSize": int64(29)})
	if _, err := client.Resource(pools).Create(t.Context(), lan, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const count = 8
	present := map[string]bool{}
	var nodes []*poolNode
	for i := range count {
		n := newPoolNode(t, s, fmt.Sprint("node-", i), func() map[string]bool { return present })
		present[n.name] = true
		nodes = append(nodes, n)
	}
	owners := make([][]netip.Addr, count)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var work errgroup.Group
	for i, n := range nodes {
		work.Go(func() error {
			for pod := range 8 { // more than one block has room for, with the edges
				if i == 0 && pod == 4 {
					if err := s.Kill(); err != nil {
						return err
					}
					if err := s.Restart(ctx); err != nil {
						return err
					}
				}
				addr, err := n.addPod(ctx, fmt.Sprintf("%s-%d", n.name, pod))
				if err != nil {
					return err
				}
				owners[i] = append(owners[i], addr)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]int{}
	for i, addrs := range owners {
		for _, a := range addrs {
			if other, twice := seen[a]; twice {
				t.Errorf("%s is given by node-%d and node-%d", a, i, other)
			}
			seen[a] = i
		}
	}
	checkObjects(t, client, nodes)

	delete(present, "node-7")
	if err := s.Client.CoreV1().Nodes().Delete(t.Context(), "node-7", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for pod := 8; !heldBy(t, client, owners[7][0], "node-0"); pod++ {
		if _, err := nodes[0].addPod(ctx, fmt.Sprint("more-", pod)); err != nil {
			t.Fatal(err)
		}
	}
}

func newPoolNode(t *testing.T, s *kube.Server, name string, nodes func() map[string]bool) *poolNode {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := s.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	source, err := poolkube.New(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	n := &poolNode{name: name, dir: t.TempDir(), source: source, nodes: nodes}
	n.lessor = pool.NewLessor(name, source, n, pool.Options{Grace: time.Second, Idle: time.Minute, Forget: time.Hour, Claim: rand.Text})
	return n
}

// checkObjects: each grant's object names its node.
func checkObjects(t *testing.T, client dynamic.Interface, nodes []*poolNode) {
	t.Helper()
	list, err := client.Resource(blocks).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holder := map[string]string{}
	for _, o := range list.Items {
		holder[o.GetName()], _, _ = unstructured.NestedString(o.Object, "spec", "node")
	}
	for _, n := range nodes {
		err := n.Update(t.Context(), "macvlan", func(tx ipam.Tx, boot string) error {
			grants, err := ipam.Grants(tx, boot)
			for _, g := range grants {
				if name := pool.BlockName(g.Block); holder[name] != n.name {
					t.Errorf("%s has a grant of %s, whose object says %q", n.name, g.Block, holder[name])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// heldBy says whether the block of an address is a node's.
func heldBy(t *testing.T, client dynamic.Interface, addr netip.Addr, node string) bool {
	t.Helper()
	block, err := addr.Prefix(29)
	if err != nil {
		t.Fatal(err)
	}
	o, err := client.Resource(blocks).Get(t.Context(), pool.BlockName(block), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, _, _ := unstructured.NestedString(o.Object, "spec", "node")
	return got == node
}
