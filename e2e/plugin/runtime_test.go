package plugin

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

// object is a JSON object in the making.
type object map[string]any

// node is a host's network namespace and a container runtime in it, made of
// libcni as real ones are.
type node struct {
	ns  *netns.NS
	cni *libcni.CNIConfig
}

func newNode(t *testing.T) *node {
	t.Helper()
	ns := netns.NewT(t)
	return &node{ns, newRuntime(t, ns)}
}

// newRuntime is a runtime that knows of no pod yet.
func newRuntime(t *testing.T, ns *netns.NS) *libcni.CNIConfig {
	t.Helper()
	return lab.NewRuntime(ns, t.TempDir(), programs.Dir(t), refplugins.Dir(t))
}

// newList is the network of a chain of plugins.
func newList(t *testing.T, plugins ...object) *libcni.NetworkConfigList {
	t.Helper()
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "net", "plugins": plugins})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// pod is a pod's network namespace and what the runtime says of it to plugins.
type pod struct {
	ns   *netns.NS
	conf *libcni.RuntimeConf
}

func newPod(t *testing.T, id string) pod {
	t.Helper()
	ns := netns.NewT(t)
	return pod{ns, &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path(), IfName: "eth0"}}
}

func (n *node) add(t *testing.T, list *libcni.NetworkConfigList, p pod) *types100.Result {
	t.Helper()
	result, err := n.cni.AddNetworkList(t.Context(), list, p.conf)
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil {
		t.Fatal(err)
	}
	return current
}

func (n *node) check(t *testing.T, list *libcni.NetworkConfigList, p pod) {
	t.Helper()
	if err := n.cni.CheckNetworkList(t.Context(), list, p.conf); err != nil {
		t.Errorf("CHECK: %v", err)
	}
}

func (n *node) del(t *testing.T, list *libcni.NetworkConfigList, p pod) {
	t.Helper()
	if err := n.cni.DelNetworkList(t.Context(), list, p.conf); err != nil {
		t.Errorf("DEL: %v", err)
	}
}
