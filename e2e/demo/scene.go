package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Scene is a lab with pods and Services on it.
type Scene struct {
	Lab     *lab.Lab
	Clients []*lab.Pod // client-N on node-N
	Web     []*lab.Pod // web-1 to web-3, on the nodes in turn

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
		s.Lab, err = lab.New(ctx, opts)
		return fmt.Sprintf("%d nodes, a proxy on each, mode %s", opts.Nodes, opts.Mode), err
	})
	if err != nil {
		return err
	}
	ctx, stop := s.Lab.Guard(ctx)
	defer stop()
	for i, node := range s.Lab.Nodes {
		name := fmt.Sprintf("client-%d", i+1)
		if err := r.addPod(ctx, s, &s.Clients, node, name); err != nil {
			return err
		}
	}
	for i := range backends {
		node := s.Lab.Nodes[i%len(s.Lab.Nodes)]
		if err := r.addPod(ctx, s, &s.Web, node, fmt.Sprintf("web-%d", i+1)); err != nil {
			return err
		}
	}
	return r.check(ctx, "services", s.applyServices)
}

func (r *recorder) addPod(ctx context.Context, s *Scene, to *[]*lab.Pod, node *lab.Node, name string) error {
	return r.check(ctx, "pod "+name, func(ctx context.Context) (string, error) {
		p, err := s.Lab.AddPod(ctx, node, name)
		if err != nil {
			return "", err
		}
		*to = append(*to, p)
		return fmt.Sprintf("on %s, %s, %s", node.Name, p.IPv4(), p.IPv6()), nil
	})
}

func (s *Scene) applyServices(ctx context.Context) (string, error) {
	s.web = newService("web", "10.96.0.10", "fd00:10:96::10")
	s.idle = newService("idle", "10.96.0.20", "fd00:10:96::20")
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

// newService is a dual-stack Service with port 80 over each protocol.
func newService(name string, clusterIPs ...string) *corev1.Service {
	policy := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeClusterIP,
			Selector:       map[string]string{"app": name},
			ClusterIP:      clusterIPs[0],
			ClusterIPs:     clusterIPs,
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy: &policy,
		},
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{
			Name:       strings.ToLower(string(protocol)),
			Protocol:   protocol,
			Port:       80,
			TargetPort: intstr.FromInt32(lab.PodPort),
		})
	}
	return service
}
