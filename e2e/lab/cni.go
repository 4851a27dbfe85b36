package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/e2e/netns"
)

// podIfName is the name of a pod's interface, in every runtime.
const podIfName = "eth0"

// writeCNIConfig leaves the node's network configuration where its runtime, this
// package, reads it at every attachment.
func (n *Node) writeCNIConfig() error {
	type object = map[string]any
	plugin := object{
		"type":             cniProgram,
		"mode":             "bridge",
		"bridge":           "cni0",
		"isGateway":        true,
		"isDefaultGateway": true,
		// A pod that reaches itself by a virtual IP: with bridge-nf-call the
		// translated packet goes out by the bridge port that it came in by.
		"hairpinMode": true,
		"ipam": object{
			"type":    "fairlead-ipam",
			"dataDir": filepath.Join(n.dir.node(n.Name), "ipam"),
			"ranges": [][]object{
				{{"subnet": n.PodCIDRs[0].String()}},
				{{"subnet": n.PodCIDRs[1].String()}},
			},
		},
	}
	list := object{"cniVersion": "1.1.0", "name": "fairlead", "plugins": []object{plugin}}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("encode network configuration: %w", err)
	}
	return writeFile(n.cniConfig(), append(data, '\n'))
}

func (n *Node) cniConfig() string { return filepath.Join(n.dir.node(n.Name), "cni.conflist") }

// attachment is a pod's interface, to be made and removed by the node's plugin.
type attachment struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

func (n *Node) attachment(binDir, podName, netnsPath string) (*attachment, error) {
	list, err := libcni.NetworkConfFromFile(n.cniConfig())
	if err != nil {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}
	exec := &execInside{Exec: &invoke.DefaultExec{RawExec: &invoke.RawExec{}}, ns: n.ns}
	return &attachment{
		cni:  libcni.NewCNIConfigWithCacheDir([]string{binDir}, filepath.Join(n.dir.node(n.Name), "cni-cache"), exec),
		list: list,
		conf: &libcni.RuntimeConf{
			ContainerID: newContainerID(),
			NetNS:       netnsPath,
			IfName:      podIfName,
			Args: [][2]string{
				{"IgnoreUnknown", "1"},
				{"K8S_POD_NAMESPACE", "default"},
				{"K8S_POD_NAME", podName},
			},
		},
	}, nil
}

// newContainerID is in the form that container runtimes use.
func newContainerID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, says its documentation
	return hex.EncodeToString(b)
}

// add attaches the pod and returns its addresses.
func (a *attachment) add(ctx context.Context) ([]netip.Addr, error) {
	result, err := a.cni.AddNetworkList(ctx, a.list, a.conf)
	if err != nil {
		return nil, err
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("read result of %s: %w", cniProgram, err)
	}
	var addrs []netip.Addr
	for _, ip := range current.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("read result of %s: %q is no address", cniProgram, ip.Address.IP)
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

// del detaches the pod. What is gone already is no error.
func (a *attachment) del(ctx context.Context) error {
	return a.cni.DelNetworkList(ctx, a.list, a.conf)
}

// execInside runs plugins in a node's namespace, where a node's runtime is.
type execInside struct {
	invoke.Exec
	ns *netns.NS
}

// ExecPlugin implements invoke.Exec.
func (e *execInside) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var out []byte
	err := e.ns.Do(func() (err error) {
		out, err = e.Exec.ExecPlugin(ctx, path, stdin, environ)
		return err
	})
	return out, err
}
