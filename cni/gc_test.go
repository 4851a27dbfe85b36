package cni_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// gc calls GC with the pods that are to stay.
func (n *node) gc(conf network, keep ...pod) error {
	var valid []types.GCAttachment // of none, null, as libcni has it
	for _, p := range keep {
		valid = append(valid, types.GCAttachment{ContainerID: p.id, IfName: p.ifName})
	}
	_, err := n.call(n, "GC", pod{}, marshal(conf.with("cni.dev/valid-attachments", valid)))
	return err
}

// TestGC has pods of two networks on one node and one bridge. GC for the first
// must remove what it is not told to keep, and nothing of the other network.
func TestGC(t *testing.T) {
	node, conf := newNode(t), newNetwork(t, "10.9.0.0/24")
	other := newNetwork(t, "10.8.0.0/24").with("name", "other")
	kept, lost, foreign := newPod(t, "kept"), newPod(t, "lost"), newPod(t, "foreign")
	result := node.addT(t, kept, conf)
	port := node.addT(t, lost, conf).Interfaces[1].Name
	foreignResult := node.addT(t, foreign, other)
	node.ns.RunT(t, "ip", "link", "add", "vethmine", "type", "veth")

	if err := node.gc(conf, kept); err != nil {
		t.Fatal(err)
	}
	if _, err := node.ns.Output(t.Context(), "ip", "link", "show", port); err == nil {
		t.Error("the port of the lost pod is there")
	}
	if err := node.check(kept, conf, result); err != nil {
		t.Errorf("the pod to keep: %v", err)
	}
	if err := node.check(foreign, other, foreignResult); err != nil {
		t.Errorf("the pod of the other network: %v", err)
	}
	node.ns.RunT(t, "ip", "link", "show", "vethmine")

	if err := node.gc(conf); err != nil {
		t.Fatal(err)
	}
	if ports := linksOf(t, node.ns, "veth"); len(ports) != 3 { // of the other network, and both of mine
		t.Errorf("interfaces left: %q", ports)
	}
}

// TestGCFreesAddresses has the only address of a pool held by a pod that the
// runtime does not know, with and without its interface.
func TestGCFreesAddresses(t *testing.T) {
	tests := map[string]func(t *testing.T, p pod){
		"with its interface":    func(*testing.T, pod) {},
		"without its interface": func(t *testing.T, p pod) { p.ns.RunT(t, "ip", "link", "del", "eth0") },
	}
	for name, lose := range tests {
		t.Run(name, func(t *testing.T) {
			node, lost, conf := newNode(t), newPod(t, "lost"), onlyAddress(t)
			node.addT(t, lost, conf)
			lose(t, lost)
			if err := node.gc(conf); err != nil {
				t.Fatal(err)
			}
			node.addT(t, newPod(t, "next"), conf)
		})
	}
}

func TestGCRefuses(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), onlyAddress(t)
	result := node.addT(t, pod, conf)
	tests := map[string]struct {
		conf network
		want string
	}{
		"no list":      {conf, "cni.dev/valid-attachments: no value is not allowed: GC needs the list of the attachments to keep"},
		"a string":     {conf.with("cni.dev/valid-attachments", "pod"), "cni.dev/valid-attachments: a JSON string is not allowed: it must be a list"},
		"no interface": {conf.with("cni.dev/valid-attachments", []network{{"containerID": "pod"}}), "cni.dev/valid-attachments[0]: it must have a containerID and an ifname"},
		"no container": {conf.with("cni.dev/valid-attachments", []network{{"containerID": "pod", "ifname": "eth0"}, {"ifname": "eth0"}}), "cni.dev/valid-attachments[1]: it must have a containerID and an ifname"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := node.call(node, "GC", pod, marshal(tt.conf))
			if text(err) != tt.want || code(err) != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d, error %v; want %s", code(err), err, tt.want)
			}
			if err := node.check(pod, conf, result); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGCGoesOn has IPAM fail and the configuration be one that ADD refuses:
// interfaces go nevertheless, and the error comes back.
func TestGCGoesOn(t *testing.T) {
	node, conf := newNode(t), newNetwork(t).with("mtu", 1400)
	node.addT(t, newPod(t, "lost"), conf)
	dir := t.TempDir()
	script := "#!/bin/sh\necho '{\"code\": 5, \"msg\": \"disk on fire\"}'\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "ipam-of-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	node.path = dir
	err := node.gc(conf.with("mtu", -1).with("ipam", network{"type": "ipam-of-test"}))
	if text(err) != "IPAM plugin ipam-of-test: GC: disk on fire" || code(err) != types.ErrIOFailure {
		t.Errorf("code %d, error %v", code(err), err)
	}
	if ports := linksOf(t, node.ns, "veth"); len(ports) != 0 {
		t.Errorf("ports left: %q", ports)
	}
}

// TestProgramCollects calls STATUS and GC of both programs by exec.
func TestProgramCollects(t *testing.T) {
	for _, name := range []string{"fairlead-cni", "fairlead-ipam"} {
		t.Run(name, func(t *testing.T) {
			node, conf := newExecNode(t), onlyAddress(t)
			program := *node
			program.call = byExec(filepath.Join(fairleadCNI(t), name))
			lost := newPod(t, "lost")
			node.addT(t, lost, conf)
			_, err := program.call(&program, "STATUS", pod{}, marshal(conf))
			if diff := cmp.Diff("no addresses left in 10.9.0.9-10.9.0.9", text(err)); diff != "" || code(err) != types.ErrPluginNotAvailable {
				t.Errorf("STATUS: code %d (-want +got):\n%s", code(err), diff)
			}
			if err := program.gc(conf); err != nil {
				t.Errorf("GC: %v", err)
			}
			if _, err := program.call(&program, "STATUS", pod{}, marshal(conf)); err != nil {
				t.Errorf("STATUS: %v", err)
			}
		})
	}
}
