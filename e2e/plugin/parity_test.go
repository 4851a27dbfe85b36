package plugin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/fairlead/fairlead/e2e/netns"
)

// TestParity runs one configuration through a reference plugin and, with another
// type, through Fairlead, each in fresh namespaces, and compares all that the
// kernel has then, and the results. What differs must be wanted, and what is
// wanted must differ.
func TestParity(t *testing.T) {
	for _, tt := range parity {
		t.Run(tt.reference+"/"+tt.name, func(t *testing.T) {
			reference := tt.run(t, tt.reference, "host-local")
			fairlead := tt.run(t, "fairlead-cni", "fairlead-ipam")
			found := map[string]bool{}
			for _, fact := range differing(reference, fairlead) {
				because := tt.reason(fact, reference[fact], fairlead[fact])
				if because == "" {
					t.Errorf("%s: %q by the reference, %q by Fairlead", fact, reference[fact], fairlead[fact])
				}
				found[because] = true
			}
			for _, d := range tt.wanted {
				if !found[d.because] {
					t.Errorf("there is no difference of those that are because %s", d.because)
				}
			}
		})
	}
}

// run is one ADD and one DEL, with what the kernel has after each.
func (c comparison) run(t *testing.T, plugin, ipam string) facts {
	t.Helper()
	node, pod := newNode(t), newPod(t, "pod")
	for _, ns := range []*netns.NS{node.ns, pod.ns} {
		// No address comes by itself, some time after the interface.
		ns.RunT(t, "sysctl", "-q", "net.ipv6.conf.default.addr_gen_mode=1")
	}
	pod.ns.RunT(t, "ip", "link", "set", "lo", "up") // as runtimes do, by the plugin loopback
	if c.prepare != nil {
		c.prepare(t, node, pod)
	}
	list := newList(t, c.configuration(t, plugin, ipam))
	pod.conf.CapabilityArgs = c.capabilities
	pod.conf.Args = c.args
	all := facts{}
	c.add(t, all, node, pod, list)
	node.del(t, list, pod)
	names := naming(t, node, pod)
	all.collect(t, "after DEL: host", node.ns, names)
	all.collect(t, "after DEL: pod", pod.ns, names)
	return all
}

func (c comparison) add(t *testing.T, all facts, node *node, pod pod, list *libcni.NetworkConfigList) {
	t.Helper()
	result := node.add(t, list, pod)
	names := naming(t, node, pod)
	all.collect(t, "host", node.ns, names)
	all.collect(t, "pod", pod.ns, names)
	text, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal([]byte(names.Replace(string(text))), &value); err != nil {
		t.Fatal(err)
	}
	all.flatten("result", value)
}

// configuration is the row's, for a plugin and its IPAM.
func (c comparison) configuration(t *testing.T, plugin, ipam string) object {
	t.Helper()
	conf := object{}
	if err := json.Unmarshal([]byte(c.keys), &conf); err != nil {
		t.Fatal(err)
	}
	conf["type"] = plugin
	if section, ok := conf["ipam"].(map[string]any); ok {
		section["type"], section["dataDir"] = ipam, t.TempDir()
	}
	return conf
}

// naming gives what is made up for each run the same name in all of them: the
// ports of bridges, hardware addresses that nobody asked for, the pod's path.
func naming(t *testing.T, node *node, pod pod) *strings.Replacer {
	t.Helper()
	replace := []string{pod.conf.NetNS, "<path of the pod>"}
	for _, place := range []struct {
		name string
		ns   *netns.NS
	}{{"host", node.ns}, {"pod", pod.ns}} {
		var links []struct{ IfName, Address string }
		if err := json.Unmarshal([]byte(place.ns.RunT(t, "ip", "-json", "link")), &links); err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			name := l.IfName
			if strings.HasPrefix(name, "veth") {
				name = "<port>"
				replace = append(replace, l.IfName, name)
			}
			if !strings.HasPrefix(l.Address, "02:aa:") && l.Address != "00:00:00:00:00:00" {
				replace = append(replace, l.Address, fmt.Sprintf("<of %s of the %s>", name, place.name))
			}
		}
	}
	return strings.NewReplacer(replace...)
}
