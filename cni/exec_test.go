package cni_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/refplugins"
)

// newExecNode runs the built program, as a container runtime does.
func newExecNode(t *testing.T) *node {
	n := newNode(t)
	n.call = byExec(filepath.Join(fairleadCNI(t), "fairlead-cni"))
	return n
}

// TestProgram is the life of two pods.
func TestProgram(t *testing.T) {
	node, conf := newExecNode(t), newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true)
	a, b := newPod(t, "a"), newPod(t, "b")
	resultA, resultB := node.addT(t, a, conf), node.addT(t, b, conf)
	for i := range 2 {
		ipA, ipB := resultA.IPs[i].Address.IP.String(), resultB.IPs[i].Address.IP.String()
		connect(t, a.ns, ipA, b.ns, ipB)
		connect(t, a.ns, ipA, node.ns, resultA.IPs[i].Gateway.String())
	}
	if err := node.check(a, conf, resultA); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	b.ns.RunT(t, "ip", "link", "set", "eth0", "down")
	if err := node.check(b, conf, resultB); code(err) != types.ErrInternal {
		t.Errorf("CHECK of a pod whose interface is down: %v", err)
	}
	if _, err := node.add(a, conf); code(err) != types.ErrInvalidEnvironmentVariables {
		t.Errorf("a second ADD: %v", err)
	}
	if err := node.check(a, conf, resultA); err != nil {
		t.Errorf("CHECK after the second ADD: %v", err)
	}
	for range 2 {
		node.delT(t, a, conf)
		node.delT(t, b, conf)
	}
	if ports := linksOf(t, node.ns, "veth"); len(ports) != 0 {
		t.Errorf("ports left: %q", ports)
	}
}

// TestProgramReportsErrors looks at what a runtime sees: the document of the
// specification on standard output, nothing else, and an exit status.
func TestProgramReportsErrors(t *testing.T) {
	program := exec.CommandContext(t.Context(), filepath.Join(fairleadCNI(t), "fairlead-cni"))
	program.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=pod", "CNI_NETNS=" + newPod(t, "pod").netns, "CNI_IFNAME=eth0", "CNI_PATH=/"}
	program.Stdin = strings.NewReader(`{"cniVersion": "1.1.0", "name": "net", "type": "fairlead-cni", "mode": "tunnel"}`)
	out, err := program.Output()
	if program.ProcessState.ExitCode() != 1 {
		t.Errorf("exit status: %v", err)
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := map[string]any{"code": 7.0, "msg": `mode: "tunnel" is unknown: it must be "bridge" or "macvlan"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestProgramVersions(t *testing.T) {
	for _, name := range []string{"fairlead-cni", "fairlead-ipam"} {
		t.Run(name, func(t *testing.T) {
			program := exec.CommandContext(t.Context(), filepath.Join(fairleadCNI(t), name))
			program.Env = []string{"CNI_COMMAND=VERSION"}
			out, err := program.Output()
			if err != nil {
				t.Fatal(err)
			}
			const want = `{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
			if diff := cmp.Diff(want, string(out)); diff != "" {
				t.Errorf("VERSION (-want +got):\n%s", diff)
			}
		})
	}
}

// TestProgramByHand is a person who wonders what the program is.
func TestProgramByHand(t *testing.T) {
	for name, want := range map[string]string{"fairlead-cni": "connects pods to a bridge", "fairlead-ipam": "gives pods their addresses"} {
		t.Run(name, func(t *testing.T) {
			program := exec.CommandContext(t.Context(), filepath.Join(fairleadCNI(t), name))
			program.Env = []string{}
			out, err := program.CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestProgramIsSmall(t *testing.T) {
	const limit = 10 << 20
	info, err := os.Stat(filepath.Join(fairleadCNI(t), "fairlead-cni"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > limit {
		t.Errorf("%d bytes, at most %d are wanted", info.Size(), limit)
	}
}

// TestDelegation has the plugins and IPAM plugins of both worlds work together.
func TestDelegation(t *testing.T) {
	ours, reference := fairleadCNI(t), refplugins.Dir(t)
	tests := []struct{ plugin, ipam string }{
		{filepath.Join(ours, "fairlead-cni"), "fairlead-ipam"},
		{filepath.Join(ours, "fairlead-cni"), "host-local"},
		{filepath.Join(reference, "bridge"), "fairlead-ipam"},
	}
	for _, tt := range tests {
		t.Run(filepath.Base(tt.plugin)+" with "+tt.ipam, func(t *testing.T) {
			node := newNode(t)
			node.path = ours + ":" + reference
			node.call = byExec(tt.plugin)
			conf := newNetwork(t).with("isGateway", true).with("ipam", network{
				"type": tt.ipam, "dataDir": t.TempDir(),
				"ranges": [][]network{{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.9"}}, {{"subnet": "fd09::/64"}}},
				"routes": []network{{"dst": "0.0.0.0/0"}, {"dst": "2000::/3"}},
			})
			pod := newPod(t, "pod")
			result := node.addT(t, pod, conf)
			connect(t, pod.ns, "10.9.0.9", node.ns, "10.9.0.1")
			if len(result.IPs) != 2 || len(result.Routes) != 2 {
				t.Errorf("addresses %v and routes %v, want two of each", result.IPs, result.Routes)
			}
			if err := node.check(pod, conf, result); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if _, err := node.add(newPod(t, "one-too-many"), conf); err == nil {
				t.Error("a second pod got the only address")
			}
			node.delT(t, pod, conf)
			node.addT(t, newPod(t, "next"), conf)
		})
	}
}

// TestDelegateIsUndone looks at the calls that an IPAM plugin gets when
// something goes wrong, its own ADD or a step after it.
func TestDelegateIsUndone(t *testing.T) {
	const addresses = `{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]}`
	tests := map[string]struct {
		onAdd    string // shell
		wantCode uint
		want     string
	}{
		"its ADD fails": {
			onAdd:    `echo '{"code": 11, "msg": "busy"}'; exit 1`,
			wantCode: types.ErrTryAgainLater, want: "IPAM plugin ipam-of-test: ADD: busy",
		},
		"it says nothing": {
			onAdd:    "exit 3",
			wantCode: types.ErrInternal, want: "IPAM plugin ipam-of-test: ADD: exit status 3",
		},
		"its result is none": {
			onAdd:    "echo what",
			wantCode: types.ErrInternal, want: "IPAM plugin ipam-of-test: decode result: decoding version from network config: invalid character 'w' looking for beginning of value",
		},
		"its result has no address": {
			onAdd:    `echo '{"cniVersion": "1.1.0"}'`,
			wantCode: types.ErrInternal, want: "IPAM plugin ipam-of-test: its result has no address",
		},
		"one of its addresses is none": {
			onAdd:    `echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}, null]}'`,
			wantCode: types.ErrInternal, want: "IPAM plugin ipam-of-test: decode result: ips[1] has no address",
		},
		"a later step fails": {
			onAdd:    "echo '" + addresses + "'",
			wantCode: types.ErrInternal, want: "bridge: interface lo is a device, not a bridge",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			journal := filepath.Join(dir, "journal")
			script := fmt.Sprintf("#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS >>%s\n"+
				"test $CNI_COMMAND != ADD && exit 0\n%s\n", journal, tt.onAdd)
			if err := os.WriteFile(filepath.Join(dir, "ipam-of-test"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			node, pod := newNode(t), newPod(t, "pod")
			node.path, pod.args = dir, "IgnoreUnknown=1;K8S_POD_NAME=web"
			_, err := node.add(pod, newNetwork(t).with("bridge", "lo").with("ipam", network{"type": "ipam-of-test"}))
			if text(err) != tt.want || code(err) != tt.wantCode {
				t.Errorf("code %d, error %v; want %d, %s", code(err), err, tt.wantCode, tt.want)
			}
			calls, err := os.ReadFile(journal)
			if err != nil {
				t.Fatal(err)
			}
			attachment := fmt.Sprintf("pod eth0 %s %s\n", pod.netns, pod.args)
			if diff := cmp.Diff("ADD "+attachment+"DEL "+attachment, string(calls)); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}
