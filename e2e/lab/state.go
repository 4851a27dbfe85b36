package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/fairlead/fairlead/e2e/cgroup"
)

// Root is the directory in which every lab of this machine has its own.
const Root = "/run/fairlead-lab"

// dir is a lab's directory, Root/ID:
//
//	state.json               State
//	netns/NAME               the namespaces of the underlay, the nodes and the pods
//	nodes/NODE/manifests/    what the node's programs watch
//	nodes/NODE/cni.template  what the network configuration is made of
//	nodes/NODE/net.d/        the network configuration, once pods can be connected
//	nodes/NODE/cni-cache/    libcni's
//	nodes/NODE/ipam/         fairlead-ipam's
//	nodes/NODE/bpf/          a bpf file system: what the proxy pins
//	nodes/NODE/log/NAME.log  of the node's programs and of its pods' servers
type dir string

func dirOf(id string) dir { return dir(filepath.Join(Root, id)) }

func (d dir) netns(name string) string { return filepath.Join(string(d), "netns", name) }
func (d dir) node(name string) string  { return filepath.Join(string(d), "nodes", name) }
func (d dir) state() string            { return filepath.Join(string(d), "state.json") }
func (d dir) bpf(node string) string   { return filepath.Join(d.node(node), "bpf") }

// cgroup names the cgroup of a node and its pods, whose names all begin with
// cgroup("").
func (d dir) cgroup(node string) string { return filepath.Base(string(d)) + "." + node }

// log is the log of a program on a node.
func (d dir) log(node, program string) string {
	return filepath.Join(d.node(node), "log", program+".log")
}

// State is what a lab's directory says of it to other processes.
type State struct {
	ID    string      `json:"id"`
	Owner Process     `json:"owner"` // who builds it
	Kept  bool        `json:"kept"`  // outlives its owner
	Mode  string      `json:"mode"`
	Nodes []NodeState `json:"nodes"`
	Pods  []PodState  `json:"pods"`
}

// NodeState is a node in State.
type NodeState struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Proxy     Process      `json:"proxy"`
}

// PodState is a pod in State.
type PodState struct {
	Name      string       `json:"name"`
	Node      string       `json:"node"`
	Addresses []netip.Addr `json:"addresses"`
	Server    Process      `json:"server"`
}

// State is what the lab tells other processes.
func (l *Lab) State() State {
	s := State{ID: l.ID, Owner: l.owner, Mode: l.opts.Mode}
	for _, n := range l.Nodes {
		node := NodeState{Name: n.Name, Addresses: n.Addrs}
		node.Proxy = n.ProxyProcess()
		s.Nodes = append(s.Nodes, node)
	}
	for _, p := range l.pods {
		s.Pods = append(s.Pods, PodState{Name: p.Name, Node: p.Node.Name, Addresses: p.Addrs, Server: p.server.Process})
	}
	return s
}

func (l *Lab) save() error { return l.dir.save(l.State()) }

// alive says that the lab belongs to somebody: to the process that built it or
// builds it, or, if it is kept, to whoever takes it down. No lab survives a
// reboot.
func (s State) alive() bool {
	return s.Owner.Running() || s.Kept && s.Owner.Boot == bootID()
}

// NetnsPath is the file to which the namespace of a node or pod is bound.
func (s State) NetnsPath(name string) (string, error) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return dirOf(s.ID).netns(name), nil
		}
	}
	for _, p := range s.Pods {
		if p.Name == name {
			return dirOf(s.ID).netns(name), nil
		}
	}
	return "", fmt.Errorf("find %s: lab %s has no pod or node of this name", name, s.ID)
}

// Cgroup is that of a node or pod, nil if it is in none of its own.
func (s State) Cgroup(name string) (*cgroup.Cgroup, error) {
	if !usesCgroups(s.Mode) {
		return nil, nil
	}
	for _, p := range s.Pods {
		if p.Name == name {
			name = p.Node
		}
	}
	return cgroup.Named(dirOf(s.ID).cgroup(name))
}

func readState(d dir) (State, error) {
	var s State
	data, err := os.ReadFile(d.state())
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("decode %s: %w", d.state(), err)
	}
	return s, nil
}

func (d dir) save(s State) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return writeFile(d.state(), append(data, '\n'))
}

// writeFile replaces a file in one step: a reader sees the old content or the
// new. The temporary name begins with a dot, which watchers of directories skip.
func writeFile(path string, data []byte) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
