package faults

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
)

// TestPlaceMissing starts a proxy where a file system is missing or cannot be written,
// in a mount namespace of its own. It says which, or goes over to the other mode.
func TestPlaceMissing(t *testing.T) {
	const (
		readOnlyBPF = "mount -t bpf bpf /sys/fs/bpf; mount -o remount,ro /sys/fs/bpf"
		noCgroup    = "umount --lazy --all-targets $(findmnt --noheadings --output TARGET --types cgroup2)"
		readOnlyRun = "mount -o remount,ro /run"
	)
	for _, tt := range []struct{ name, breaks, flags, says string }{
		{"bpffs cannot be written, ebpf", readOnlyBPF, "--mode ebpf", "fairlead: --mode ebpf: make /sys/fs/bpf/fairlead: mkdir /sys/fs/bpf/fairlead: read-only file system"},
		{"bpffs cannot be written, auto", readOnlyBPF, "--mode auto", "mode=iptables"},
		{"no cgroup2, ebpf", noCgroup, "--mode ebpf", "fairlead: --mode ebpf: no cgroup v2 file system is mounted"},
		{"no cgroup2, auto", noCgroup, "--mode auto", "mode=iptables"},
		{"run cannot be written, legacy", readOnlyRun, "--mode iptables --iptables-variant legacy", "Fatal: can't open lock file /run/xtables.lock: Read-only file system"},
		{"run cannot be written, nft", readOnlyRun, "--mode iptables --iptables-variant nft", "mode=iptables"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := "mount -t tmpfs run /run; " + tt.breaks + "; exec " + filepath.Join(programs.Dir(t), "fairlead") +
				" proxy --manifests " + t.TempDir() + " --node-name n1 --state-file '' " + tt.flags
			if out := startUntil(t, script, tt.says); !strings.Contains(out, tt.says) {
				t.Errorf("want %q in:\n%s", tt.says, out)
			}
		})
	}
}

// startUntil runs a script until it says something, or ends.
func startUntil(t *testing.T, script, says string) (out string) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", script)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := netns.NewT(t).Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
	for lines := bufio.NewScanner(stdout); lines.Scan() && !strings.Contains(out, says); {
		out += lines.Text() + "\n"
	}
	_, _ = cmd.Process.Kill(), cmd.Wait()
	return out
}
