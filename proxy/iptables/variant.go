package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/fairlead/fairlead/cni/host/xtables"
)

// The variants of iptables: which part of the kernel holds the rules.
const (
	Legacy = "legacy" // ip_tables
	NFT    = "nft"    // nf_tables
)

// hints are chains by which kubelet tells others which variant it uses (KEP-3178),
// or did before it had a chain for that alone.
var hints = []string{":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "}

// HostVariant finds which variant the other programs of this node use, for a proxy
// that brings both with it: the one with kubelet's hint, else the one with more
// rules, else nft. Rules in the other one would work too, but nobody who looks
// for them would find them. The error wraps exec.ErrNotFound if a command is missing.
func HostVariant(ctx context.Context) (string, error) {
	var saved [2]string
	for i, variant := range []string{NFT, Legacy} {
		if variant == Legacy && !legacyInUse(false) {
			break
		}
		path, err := exec.LookPath("iptables-" + variant + "-save")
		if err != nil {
			return "", fmt.Errorf("find the node's iptables variant: %w", err)
		}
		out, err := save(ctx, path)
		if err != nil {
			return "", fmt.Errorf("find the node's iptables variant: %w", err)
		}
		saved[i] = string(out)
	}
	return chooseVariant(saved[0], saved[1]), nil
}

// chooseVariant decides by what iptables-save says of each variant.
func chooseVariant(nft, legacy string) string {
	switch {
	case hinted(nft):
		return NFT
	case hinted(legacy), rules(legacy) > rules(nft):
		return Legacy
	}
	return NFT
}

func hinted(saved string) bool {
	for _, hint := range hints {
		if strings.Contains(saved, hint) {
			return true
		}
	}
	return false
}

func rules(saved string) int { return strings.Count(saved, "\n-A ") }

// Left looks whether there are chains of ours among those that a variant sees; "" is
// what the host calls iptables. It makes no tables, and is quick where there are no
// rules. The error wraps exec.ErrNotFound if there are no commands.
func Left(ctx context.Context, variant string) (bool, error) {
	var missing []error
	for _, command := range []string{"iptables", "ip6tables"} {
		name := command + "-save"
		if variant != "" {
			name = command + "-" + variant + "-save"
		}
		path, err := exec.LookPath(name)
		if err != nil {
			missing = append(missing, err)
			continue
		}
		if variant == Legacy && !legacyInUse(command == "ip6tables") {
			continue
		}
		out, err := save(ctx, path)
		if err != nil || strings.Contains(string(out), "\n:"+prefix) {
			return err == nil, err
		}
	}
	if len(missing) == 2 {
		return false, errors.Join(missing...)
	}
	return false, nil
}

// legacyInUse says whether iptables-legacy-save may be called: there may be a table, or
// it would make those that it looks for.
func legacyInUse(ipv6 bool) bool {
	tables, err := xtables.Tables(ipv6)
	return err != nil || len(tables) > 0
}
