package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/kubeproxy"
)

func cleanupCommand(e env) *cobra.Command {
	var f backendFlags
	var confDir string
	var kubeProxy, yes bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that Fairlead programmed into this node's kernel",
		Long: `Removes what 'fairlead proxy' and 'fairlead node' programmed, and nothing else:
Services stop working on this node unless another proxy serves them, its pods are
cut off from those of other nodes, and the container runtime makes no more of them.
The CNI plugin itself stays: the runtime needs it to remove the pods that there
are. It may be run at any time and twice; a proxy or node that runs here makes again
what it needs, which is told.

With --kube-proxy it removes what kube-proxy has left in place of that, after asking:
its chains and tables, in whatever mode it ran. Connections that it led to their
endpoints go on. What is kubelet's stays.`,
		Example: `  fairlead cleanup
  fairlead cleanup --kube-proxy --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("only root may take from the kernel what is programmed: nothing was changed")
			}
			if kubeProxy {
				return cleanupKubeProxy(cmd.Context(), e, yes)
			}
			if err := errors.Join(cleanupProxy(cmd.Context(), f), cleanupNode(confDir)); err != nil {
				return err
			}
			for _, command := range []string{"proxy", "node"} {
				if pid := runningHere("fairlead", command); pid != 0 {
					fmt.Fprintf(e.stderr, "fairlead: 'fairlead %s' runs here (process %d) and makes again what it needs: end it, and do this once more\n", command, pid)
				}
			}
			_, err := fmt.Fprintln(e.stdout, "removed all rules and routes of Fairlead")
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", defaultConfDir, "directory of the runtime's network configurations")
	cmd.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy has left, and nothing of Fairlead")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before --kube-proxy")
	return cmd
}

// cleanupKubeProxy removes what kube-proxy has left, if it does not run any more.
func cleanupKubeProxy(ctx context.Context, e env, yes bool) error {
	if pid := runningHere("kube-proxy", ""); pid != 0 {
		return fmt.Errorf("kube-proxy runs here (process %d) and would make its rules again: end it first; nothing was changed", pid)
	}
	found, err := kubeproxy.Find(ctx)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(e.stdout, "kube-proxy has left nothing")
		return err
	}
	var list []string
	for _, l := range found {
		list = append(list, l.What)
	}
	if !yes {
		if err := confirm(e, "cleanup", list, "Services stop working here unless another proxy serves them. Remove?"); err != nil {
			return err
		}
	}
	for _, l := range found {
		if err := l.Remove(ctx); err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, "removed", l.What)
	}
	return nil
}

// runningHere is a process of that name in this network namespace, with that
// argument unless it is "". It is 0 if none is to be seen.
func runningHere(name, command string) int {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range processes {
		comm, err := os.ReadFile(file)
		dir := filepath.Dir(file)
		if ns, nsErr := os.Readlink(dir + "/ns/net"); err != nil || nsErr != nil || ns != here || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if line, _ := os.ReadFile(dir + "/cmdline"); command != "" && !strings.Contains(string(line), "\x00"+command+"\x00") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern has it begin with a digit
		return pid
	}
	return 0
}

// cleanupProxy removes what 'fairlead proxy' programmed, in whatever mode. What flows of
// packets there are go on if another proxy's rules are in the kernel.
func cleanupProxy(ctx context.Context, f backendFlags) error {
	return errors.Join(bpf.HandOver(f.bpf.Root), f.cleanupIptables(ctx))
}

// cleanupIptables removes all rules: as long as the flags do not name one, with
// whatever iptables there is, since each sees its own rules only. It fails where it
// could not look, with exec.ErrNotFound if there is no iptables.
func (f backendFlags) cleanupIptables(ctx context.Context) error {
	variants := []string{f.iptablesVariant}
	if f.iptablesVariant == "" || f.iptablesVariant == autoVariant {
		variants = []string{iptables.Legacy, iptables.NFT, ""}
	}
	var missing []error
	for i, variant := range variants {
		if i == 2 && len(missing) == 0 {
			break // it is one of the two
		}
		left, err := iptables.Left(ctx, variant)
		if errors.Is(err, exec.ErrNotFound) {
			missing = append(missing, err)
			continue
		}
		if err == nil && left {
			f.iptablesVariant = variant
			err = f.removeRules(ctx)
		}
		if err != nil {
			return err
		}
	}
	if len(missing) == len(variants) {
		return errors.Join(missing...)
	}
	return iptables.RemoveCounters(ctx)
}

// removeRules removes those of the variant that is named.
func (f backendFlags) removeRules(ctx context.Context) error {
	backend, err := f.newIptables("")
	if err != nil {
		return err
	}
	return backend.Cleanup(ctx)
}
