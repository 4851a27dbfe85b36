package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairlead/fairlead/e2e/echo"
)

// PodPort is where the server in each pod listens, over each of Networks and on
// every address of the pod.
const PodPort = 8080

// Networks are the transport protocols of a Service, in the words of package net.
var Networks = [...]string{"tcp", "udp", "sctp"}

// Pod is a namespace that fairlead-cni attached to a node's bridge, with a
// server of package e2e/echo in it that answers with the pod's name.
type Pod struct {
	site
	Name  string
	Node  *Node
	Addrs []netip.Addr // as fairlead-cni reported them

	eth0   *attachment
	server *child
}

// IPv4 is the pod's IPv4 address, the zero Addr if it has none.
func (p *Pod) IPv4() netip.Addr { return p.first(netip.Addr.Is4) }

// IPv6 is the pod's IPv6 address, the zero Addr if it has none.
func (p *Pod) IPv6() netip.Addr { return p.first(netip.Addr.Is6) }

func (p *Pod) first(is func(netip.Addr) bool) netip.Addr {
	if i := slices.IndexFunc(p.Addrs, is); i >= 0 {
		return p.Addrs[i]
	}
	return netip.Addr{}
}

// Endpoints are where the pod's server listens.
func (p *Pod) Endpoints() []echo.Endpoint {
	var at []echo.Endpoint
	for _, a := range p.Addrs {
		for _, network := range Networks {
			at = append(at, echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(a, PodPort)})
		}
	}
	return at
}

// AddPod makes a pod in the Kubernetes namespace default, attaches it to the
// node and starts its server. When it returns the server listens. A pod that
// could not be made is gone when AddPod returns.
func (l *Lab) AddPod(ctx context.Context, node *Node, name string) (*Pod, error) {
	return l.AddPodOf(ctx, node, name, node.CNIConfig())
}

// AddPodOf is AddPod for a pod of another network, whose configuration is at path.
func (l *Lab) AddPodOf(ctx context.Context, node *Node, name, path string) (*Pod, error) {
	if err := l.checkName(name); err != nil {
		return nil, err
	}
	p, err := l.newPod(node, name, path)
	if err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	if err := p.bringUp(ctx, l); err != nil {
		return nil, errors.Join(fmt.Errorf("make pod %s: %w", name, err), l.takeDown(context.WithoutCancel(ctx), p))
	}
	l.pods = append(l.pods, p)
	return p, l.save()
}

// checkName: a pod's namespace, log and Kubernetes object are named by it.
func (l *Lab) checkName(name string) error {
	if wrong := validation.IsDNS1123Label(name); wrong != nil {
		return fmt.Errorf("make pod %q: %s", name, wrong[0])
	}
	if _, err := os.Lstat(l.dir.netns(name)); err == nil {
		return fmt.Errorf("make pod %s: the lab has a node or pod of this name", name)
	}
	return nil
}

func (l *Lab) newPod(node *Node, name, config string) (*Pod, error) {
	path := l.dir.netns(name)
	eth0, err := node.attachment(config, l.opts.BinDir, name, path)
	if err != nil {
		return nil, err
	}
	ns, err := newNamespace(path)
	if err != nil {
		return nil, err
	}
	ns.Join(node.cgroup)
	return &Pod{Name: name, Node: node, site: site{ns}, eth0: eth0}, nil
}

func (p *Pod) bringUp(ctx context.Context, l *Lab) error {
	var err error
	if p.Addrs, err = p.eth0.add(ctx); err != nil {
		return err
	}
	return p.serve(ctx, l.opts)
}

// serve starts the pod's server and waits until it has printed a line, which it
// does when it listens.
func (p *Pod) serve(ctx context.Context, opts Options) error {
	args := []string{"serve", p.Name}
	for _, a := range p.Addrs {
		args = append(args, netip.AddrPortFrom(a, PodPort).String())
	}
	ready, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	cmd := exec.Command(filepath.Join(opts.BinDir, labProgram), args...)
	cmd.Stdout = stdout
	p.server, err = start(p.ns, cmd, p.Node.dir.log(p.Node.Name, p.Name), opts.Keep)
	_ = stdout.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	_, err = ready.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("start server: it ended; its log ends:\n%s", logTail(p.server.log))
	}
	return err
}

// RemovePod ends what runs in the pod and detaches it, as a runtime does.
func (l *Lab) RemovePod(ctx context.Context, p *Pod) error {
	l.pods = slices.DeleteFunc(l.pods, func(q *Pod) bool { return q == p })
	return errors.Join(l.takeDown(ctx, p), l.save())
}

// takeDown removes a pod, or what there is of it.
func (l *Lab) takeDown(ctx context.Context, p *Pod) error {
	path := l.dir.netns(p.Name)
	err := errors.Join(
		endProcesses([]string{path}),
		p.eth0.del(ctx),
		p.ns.Close(),
		unbind(path),
	)
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", p.Name, err)
	}
	return nil
}
