package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// The programs that a lab runs, all in Options.BinDir.
const (
	proxyProgram = "fairlead"
	cniProgram   = "fairlead-cni"
	labProgram   = "fairlead-lab" // serves in pods
)

// validID keeps a lab's name one element of a path, and short.
var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// Preflight says in one sentence why this machine or these options cannot make
// a lab, nil if they can. It changes nothing.
func Preflight(opts Options) error {
	if opts.Nodes < 1 || opts.Nodes > MaxNodes {
		return fmt.Errorf("make %d nodes: allowed are 1 to %d", opts.Nodes, MaxNodes)
	}
	if opts.Macvlan && (opts.Routed || opts.Nodes > maxMacvlanNodes) {
		return fmt.Errorf("make macvlan pods on %d nodes: allowed are 1 to %d, all on one link", opts.Nodes, maxMacvlanNodes)
	}
	if opts.ID != "" && !validID.MatchString(opts.ID) {
		return fmt.Errorf("name lab %q: allowed are lower-case letters, digits and -, 31 at most", opts.ID)
	}
	if os.Geteuid() != 0 {
		return errors.New("make network namespaces: this needs root")
	}
	for _, program := range []string{proxyProgram, cniProgram, labProgram} {
		if _, err := exec.LookPath(filepath.Join(opts.BinDir, program)); err != nil {
			return fmt.Errorf("find program %s in %s: run make build first", program, opts.BinDir)
		}
	}
	if opts.Mode == "ebpf" {
		return nil
	}
	for _, program := range []string{"iptables-restore", "ip6tables-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("find program %s: install the package iptables", program)
		}
	}
	return nil
}
