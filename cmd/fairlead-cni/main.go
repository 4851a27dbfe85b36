// The Go runtime reads no cgroups and mounts, of which a node has thousands, to
// find a number of processors that main sets anyway.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Fairlead-cni is the CNI plugin: a container runtime runs it for every pod
// that comes or goes. Under the name fairlead-ipam the same file is the IPAM
// plugin alone, which any other CNI plugin can delegate to.
package main

import (
	"os"
	"path/filepath"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	specversion "github.com/containernetworking/cni/pkg/version"

	"github.com/fairlead/fairlead/cni"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// A verb is one thing after another: threads on a second processor would
	// only be woken to find nothing to do, for half a millisecond of each ADD.
	runtime.GOMAXPROCS(1)
	plugin := &cni.Plugin{Stdout: os.Stdout}
	if filepath.Base(os.Args[0]) == "fairlead-ipam" {
		skel.PluginMainFuncs(plugin.IPAMFuncs(), specversion.All, "fairlead-ipam "+version+ipamAbout)
		return
	}
	skel.PluginMainFuncs(plugin.Funcs(), specversion.All, "fairlead-cni "+version+about)
}

// What a person sees who runs the program by hand.
const (
	about = `: connects pods to a bridge of the node, or as macvlan to the network that the node is on.
A container runtime runs it, with a network configuration of "type": "fairlead-cni" on standard input.`
	ipamAbout = `: gives pods their addresses.
Other CNI plugins run it, for a network configuration with "ipam": {"type": "fairlead-ipam"}.`
)
