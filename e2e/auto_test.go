package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab"
)

// A proxy that is told nothing takes eBPF; one that may not, or cannot, says in one
// line why it takes iptables, and serves all the same.
func TestModeAuto(t *testing.T) {
	for _, tt := range []struct{ name, command, mode, says string }{
		{"ebpf", `exec %s "$@"`, "ebpf", ""},
		{"no CAP_BPF", `exec setpriv --bounding-set -sys_admin,-bpf,-perfmon %s "$@"`, "iptables",
			"this process needs CAP_SYS_ADMIN, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"},
		{"no cgroup v2", `exec %s "$@" --cgroup-root /proc`, "iptables", "/proc is no folder of cgroup v2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := withProxy(t, fmt.Sprintf(tt.command, filepath.Join(programs.Dir(t), "fairlead")))
			c := newClusterOf(t, lab.Options{Nodes: 1, BinDir: dir})
			log, err := c.Nodes[0].ProxyLog()
			if err != nil {
				t.Fatal(err)
			}
			warned := strings.Count(log, "--mode auto: eBPF cannot be used on this node, so iptables is")
			if (warned == 1) != (tt.mode == "iptables") || !strings.Contains(log, tt.says) || !strings.Contains(log, " mode="+tt.mode+" ") {
				t.Errorf("want mode %s and %q, got:\n%s", tt.mode, tt.says, log)
			}
			c.checkSpread(t)
		})
	}
}

// withProxy is a folder with the programs, in which 'fairlead proxy' is a command of
// the shell's.
func withProxy(t *testing.T, command string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"fairlead-cni", "fairlead-lab"} {
		if err := os.Symlink(filepath.Join(programs.Dir(t), program), filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\ntest \"$1\" = node && exec " + filepath.Join(programs.Dir(t), "fairlead") + " \"$@\"\n" + command + "\n"
	if err := os.WriteFile(filepath.Join(dir, "fairlead"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
