package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// TestFileModes starts a node's programs with a umask that lets everybody write, and
// looks whether anybody may write what they make.
func TestFileModes(t *testing.T) {
	dir, bin := t.TempDir(), programs.Dir(t)
	manifests := filepath.Join(dir, "manifests")
	if err := os.MkdirAll(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	const node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.244.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n"
	if err := os.WriteFile(filepath.Join(manifests, "node.yaml"), []byte(node), 0o644); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`umask 0
		for d in /run /var/lib /opt; do mount -t tmpfs -o mode=755 fresh $d; done
		ip link set lo up; ip address add 10.0.0.1/32 dev lo
		%[1]s/fairlead proxy --manifests %[2]s/manifests --node-name n1 --mode iptables --state-file /var/lib/state/objects &
		proxy=$!
		%[1]s/fairlead node --manifests %[2]s/manifests --node-name n1 --cni-binary %[1]s/fairlead-cni --cni-conf-dir %[2]s/etc/cni --host-local-dir '' &
		until [ -e %[2]s/etc/cni/10-fairlead.conflist ] && [ -S /run/fairlead/proxy.sock ]; do sleep 0.1; kill -0 $proxy; done
		echo made: $(find /run /var/lib /opt %[2]s/etc | wc -l)
		find /run /var/lib /opt %[2]s/etc -perm /022 ! -type l -printf 'others may write %%M %%p\n'
		kill $proxy $!; wait`, bin, dir)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-ec", script)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := netns.NewT(t).Do(cmd.Run); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "made: ") || strings.Contains(out.String(), "others may write") {
		t.Errorf("\n%s", &out)
	}
}
