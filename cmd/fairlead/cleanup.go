package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/iptables"
)

func cleanupCommand(e env) *cobra.Command {
	var f backendFlags
	var confDir string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that Fairlead programmed into this node's kernel",
		Long: `Removes what 'fairlead proxy' and 'fairlead node' programmed, and nothing else:
Services stop working on this node unless another proxy serves them, its pods are
cut off from those of other nodes, and the container runtime makes no more of them.
The CNI plugin itself stays: the runtime needs it to remove the pods that there
are. It may be run at any time and twice.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := cleanupProxy(cmd.Context(), f)
			var usage usageError
			if errors.As(err, &usage) {
				return err
			}
			if err := errors.Join(err, cleanupNode(confDir)); err != nil {
				return err
			}
			_, err = fmt.Fprintln(e.stdout, "removed all rules and routes of Fairlead")
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", defaultConfDir, "directory of the runtime's network configurations")
	return cmd
}

// cleanupProxy removes what 'fairlead proxy' programmed, in whatever mode.
func cleanupProxy(ctx context.Context, f backendFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	return errors.Join(bpf.Remove(f.bpf.Root), f.cleanupIptables(ctx))
}

// cleanupIptables removes all rules: as long as the flags do not name one, with
// whatever iptables there is, since each sees its own rules only. It fails where it
// could not look, with exec.ErrNotFound if there is no iptables.
func (f backendFlags) cleanupIptables(ctx context.Context) error {
	variants := []string{f.iptablesVariant}
	if f.iptablesVariant == "" || f.iptablesVariant == autoVariant {
		variants = []string{"", iptables.Legacy, iptables.NFT}
	}
	var missing []error
	looked := false
	for _, variant := range variants {
		f.iptablesVariant = variant
		backend, err := f.newIptables("")
		if errors.Is(err, exec.ErrNotFound) {
			missing = append(missing, err)
			continue
		}
		if err == nil {
			looked, err = true, backend.Cleanup(ctx)
		}
		if err != nil {
			return err
		}
	}
	if !looked {
		return errors.Join(missing...)
	}
	return nil
}
