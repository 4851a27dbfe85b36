package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/e2e/netns"
)

// podIfName is the name of a pod's interface, in every runtime.
const podIfName = "eth0"

// confTemplate is fairlead node's own template with one thing more: a data
// directory and a place for BPF programs, because the nodes share a file system.
const confTemplate = `{
  "cniVersion": "1.1.0",
  "name": "fairlead",
  "plugins": [
    {
      "type": "fairlead-cni",
      "mode": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "isDefaultGateway": true,
      "hairpinMode": true,
      "bpfRoot": %q,
      "mtu": {{.MTU}},
      "ipam": {
        "type": "fairlead-ipam",
        "dataDir": %q,
        "ranges": [
{{- range $i, $cidr := .PodCIDRs}}{{if $i}},{{end}}
          [{"subnet": {{json $cidr}}}]
{{- end}}
        ]
      }
    }
  ]
}
`

// writeConfTemplate leaves what fairlead node makes the network configuration of.
func (n *Node) writeConfTemplate() error {
	if err := os.MkdirAll(filepath.Dir(n.CNIConfig()), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(confTemplate, n.dir.bpf(n.Name), n.IPAMData())
	return writeFile(n.confTemplate(), []byte(text))
}

// IPAMData is where the plugin keeps which pod has which address.
func (n *Node) IPAMData() string { return filepath.Join(n.dir.node(n.Name), "ipam") }

func (n *Node) confTemplate() string { return filepath.Join(n.dir.node(n.Name), "cni.template") }

// CNIConfig is the node's network configuration, which its runtime, this package,
// reads at every attachment.
func (n *Node) CNIConfig() string {
	return filepath.Join(n.dir.node(n.Name), "net.d", "10-fairlead.conflist")
}

// attachment is a pod's interface, to be made and removed by the node's plugin.
type attachment struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

func (n *Node) attachment(config, binDir, podName, netnsPath string) (*attachment, error) {
	list, err := libcni.NetworkConfFromFile(config)
	if err != nil {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}
	return &attachment{
		cni:  NewRuntime(n.ns, filepath.Join(n.dir.node(n.Name), "cni-cache"), binDir),
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
	began := time.Now()
	result, err := a.cni.AddNetworkList(ctx, a.list, a.conf)
	for isTransient(err) && ctx.Err() == nil && time.Since(began) < connectTimeout {
		time.Sleep(tryAgain)
		result, err = a.cni.AddNetworkList(ctx, a.list, a.conf)
	}
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

// NewRuntime is a container runtime in a node, as far as plugins see it: made of
// libcni, as real ones are. It keeps what it knows of pods in cacheDir.
func NewRuntime(node *netns.NS, cacheDir string, binDirs ...string) *libcni.CNIConfig {
	exec := &execInside{Exec: &invoke.DefaultExec{RawExec: &invoke.RawExec{}}, ns: node}
	return libcni.NewCNIConfigWithCacheDir(binDirs, cacheDir, exec)
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
