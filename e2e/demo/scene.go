package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Scene is a lab with pods and Services on it.
type Scene struct {
	Lab     *lab.Lab
	Clients []*lab.Pod // client-N on node-N
	Web     []*lab.Pod // web-1 to web-3, on the nodes in turn
	LAN     []*lab.Pod // lan-N on node-N, on macvlan, if the lab has that

	web  *corev1.Service // its backends are Web
	idle *corev1.Service // it has none
}

const backends = 3 // of the Service web

// Build makes a scene and shows it to the observer, but checks no more of it
// than that it works. What a failed Build has made is gone when it returns.
func Build(ctx context.Context, opts lab.Options, observer Observer) (*Scene, error) {
	s := new(Scene)
	if err := newRecorder(observer).build(ctx, opts, s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close takes the lab down.
func (s *Scene) Close() error {
	if s.Lab == nil {
		return nil
	}
	return s.Lab.Close()
}

// VIP is the IPv4 virtual IP of the Service web, with its port.
func (s *Scene) VIP() netip.AddrPort { return lab.VIPs(s.web)[0].Addr }

// build makes the scene as far as it can be made.
func (r *recorder) build(ctx context.Context, opts lab.Options, s *Scene) error {
	err := r.check(ctx, "cluster", func(ctx context.Context) (_ string, err error) {
		if s.Lab, err = lab.New(ctx, opts); err != nil {
			return "", err
		}
		return fmt.Sprintf("lab %s, nodes: %d, a proxy on each, mode %s", s.Lab.ID, opts.Nodes, opts.Mode), nil
	})
	if err != nil {
		return err
	}
	ctx, stop := s.Lab.Guard(ctx)
	defer stop()
	for i, node := range s.Lab.Nodes {
		p, err := r.addPod(ctx, s.Lab, node, fmt.Sprintf("client-%d", i+1))
		if err != nil {
			return err
		}
		s.Clients = append(s.Clients, p)
	}
	for i := range backends {
		p, err := r.addPod(ctx, s.Lab, s.Lab.Nodes[i%opts.Nodes], fmt.Sprintf("web-%d", i+1))
		if err != nil {
			return err
		}
		s.Web = append(s.Web, p)
	}
	if err := r.check(ctx, "services", s.applyServices); err != nil || !opts.Macvlan {
		return err
	}
	return r.addMacvlan(ctx, s)
}

// addMacvlan makes the pods on macvlan, and checks that they reach their node, it
// them, and a virtual IP.
func (r *recorder) addMacvlan(ctx context.Context, s *Scene) error {
	for i, node := range s.Lab.Nodes {
		name := fmt.Sprintf("lan-%d", i+1)
		err := r.check(ctx, "pod "+name, func(ctx context.Context) (string, error) {
			p, err := s.Lab.AddMacvlanPod(ctx, node, name)
			if err != nil {
				return "", err
			}
			s.LAN = append(s.LAN, p)
			return fmt.Sprintf("on %s by macvlan, %s, %s", node.Name, p.IPv4(), p.IPv6()), nil
		})
		if err != nil {
			return err
		}
	}
	return r.check(ctx, "macvlan", s.askMacvlan)
}

func (s *Scene) askMacvlan(ctx context.Context) (string, error) {
	for _, p := range s.LAN {
		for _, at := range p.Endpoints() {
			if _, err := p.Node.Ask(ctx, at); err != nil {
				return "", fmt.Errorf("%s to %s: %w", p.Node.Name, p.Name, err)
			}
		}
		for _, vip := range lab.VIPs(s.web) {
			if _, err := p.Ask(ctx, vip); err != nil {
				return "", fmt.Errorf("%s to %s: %w", p.Name, vip.Addr, err)
			}
		}
	}
	return "each node reaches its pod by the shim, each pod the Service web", nil
}

func (r *recorder) addPod(ctx context.Context, l *lab.Lab, node *lab.Node, name string) (p *lab.Pod, err error) {
	err = r.check(ctx, "pod "+name, func(ctx context.Context) (_ string, err error) {
		if p, err = l.AddPod(ctx, node, name); err != nil {
			return "", err
		}
		return fmt.Sprintf("on %s, %s, %s", node.Name, p.IPv4(), p.IPv6()), nil
	})
	return p, err
}

func (s *Scene) applyServices(ctx context.Context) (string, error) {
	s.web = lab.NewService("web", "10.96.0.10", "fd00:10:96::10")
	s.idle = lab.NewService("idle", "10.96.0.20", "fd00:10:96::20")
	objects := []lab.Object{s.web, s.idle}
	objects = append(objects, lab.Slices(s.web, s.Web...)...)
	objects = append(objects, lab.Slices(s.idle)...)
	if err := s.Lab.Apply(objects...); err != nil {
		return "", err
	}
	if err := s.Lab.WaitReady(ctx, s.web); err != nil {
		return "", err
	}
	return fmt.Sprintf("web at %s with %d backends, idle at %s with none",
		join(s.web.Spec.ClusterIPs), len(s.Web), join(s.idle.Spec.ClusterIPs)), nil
}
