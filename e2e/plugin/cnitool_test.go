package plugin

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

// TestCNITool has the reference's command for people do every verb, on one pod of
// a network that has one address.
func TestCNITool(t *testing.T) {
	tests := map[string]object{
		"bridge":  {"isDefaultGateway": true},
		"macvlan": {"mode": "macvlan", "master": "eth0"},
	}
	for name, plugin := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, plugin)
			tool := newCNITool(t, s)
			tool.run(t, "status", "")
			for _, remove := range []struct{ command, complaint string }{
				{"del", ""},
				// By its cache, libcni has a DEL for every pod; the GC that it then calls
				// has no list, and it must not take away all that there is.
				{"gc", "cni.dev/valid-attachments: no value is not allowed"},
			} {
				var result struct{ IPs []struct{ Address string } }
				if err := json.Unmarshal([]byte(tool.run(t, "add", "")), &result); err != nil {
					t.Fatal(err)
				}
				if len(result.IPs) != 2 || result.IPs[0].Address != "10.9.0.9/24" {
					t.Errorf("add: addresses %v, want 10.9.0.9/24 and one of fd09::/64", result.IPs)
				}
				s.says(t, s.pod.ns, "10.9.0.9/24", "ip", "addr", "show", "eth0")
				tool.run(t, "check", "")
				tool.run(t, "status", "no addresses left in 10.9.0.9-10.9.0.9")
				tool.run(t, remove.command, remove.complaint)
				tool.run(t, "status", "")
			}
			s.isGone(t)
		})
	}
}

// cniTool is the program with its environment.
type cniTool struct {
	node *netns.NS
	pod  string
	env  []string
	lib  string // directory in the place of /var/lib, where the program keeps results
}

func newCNITool(t *testing.T, s *site) cniTool {
	t.Helper()
	conf := t.TempDir()
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "net", "plugins": []object{s.plugin}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "net.conflist"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return cniTool{node: s.node.ns, pod: s.pod.conf.NetNS, lib: t.TempDir(),
		env: []string{"NETCONFPATH=" + conf, "CNI_PATH=" + programs.Dir(t) + ":" + refplugins.Dir(t)}}
}

// run runs a command and returns what it printed. It must fail with an error that
// has complaint in it, or succeed if that is "".
func (c cniTool) run(t *testing.T, command, complaint string) string {
	t.Helper()
	const script = `mount --bind "$1" /var/lib && exec "$2" "$3" net "$4"`
	args := append(c.env, "unshare", "--mount", "sh", "-c", script, "sh", c.lib, filepath.Join(refplugins.Dir(t), "cnitool"), command, c.pod)
	out, err := c.node.Output(t.Context(), "env", args...)
	if complaint == "" && err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if complaint != "" && (err == nil || !strings.Contains(out, complaint)) {
		t.Errorf("%s: error %v, want %q", command, err, complaint)
	}
	return out
}
