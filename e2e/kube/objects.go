package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/proxy/service"
)

// Apply makes the objects of the cluster what an update says, which is the way of
// proxy/watch backwards: what is said there of a Service, a slice or a node is
// asked of the API server, which gives the rest its own values. It gives each
// Service an age of its own.
func (s *Server) Apply(ctx context.Context, u service.Update) error {
	for _, node := range u.Nodes {
		if err := s.applyNode(ctx, node); err != nil {
			return fmt.Errorf("apply Node %s: %w", node.Name, err)
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for name := range u.Services {
		work.Go(func() error {
			if err := s.applyService(ctx, name, u.Services[name]); err != nil {
				return fmt.Errorf("apply Service %s: %w", name, err)
			}
			return nil
		})
	}
	for name := range u.Slices {
		work.Go(func() error {
			if err := s.applySlice(ctx, name, u.Slices[name]); err != nil {
				return fmt.Errorf("apply EndpointSlice %s: %w", name, err)
			}
			return nil
		})
	}
	return work.Wait()
}

func (s *Server) applyNode(ctx context.Context, n *service.Node) error {
	nodes := s.Client.CoreV1().Nodes()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelTopologyZone: n.Zone}},
		Spec:       corev1.NodeSpec{PodCIDR: n.PodCIDRs[0].String(), PodCIDRs: texts(n.PodCIDRs)},
	}
	made, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		if made, err = nodes.Get(ctx, n.Name, metav1.GetOptions{}); err == nil {
			made.Labels = node.Labels
			made, err = nodes.Update(ctx, made, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return err
	}
	made.Status.Addresses = nil
	for _, addr := range n.Addresses {
		made.Status.Addresses = append(made.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
	}
	_, err = nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}

// applyService changes a Service, or makes it anew where the API server forbids
// the change.
func (s *Server) applyService(ctx context.Context, name service.Name, want *service.Service) error {
	services := s.Client.CoreV1().Services(name.Namespace)
	now, err := services.Get(ctx, name.Name, metav1.GetOptions{})
	exists := err == nil
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if exists && (want == nil || !slices.Equal(now.Spec.ClusterIPs, texts(want.ClusterIPs))) {
		if err := services.Delete(ctx, name.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		exists = false
	}
	if want == nil {
		return nil
	}
	object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name.Name}, Spec: serviceSpec(want)}
	if exists {
		object.ResourceVersion = now.ResourceVersion
		object, err = services.Update(ctx, object, metav1.UpdateOptions{})
	} else {
		object, err = services.Create(ctx, object, metav1.CreateOptions{})
	}
	if err != nil || len(object.Status.LoadBalancer.Ingress)+len(want.LoadBalancerIPs) == 0 {
		return err
	}
	object.Status.LoadBalancer.Ingress = nil
	for _, ip := range want.LoadBalancerIPs {
		object.Status.LoadBalancer.Ingress = append(object.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip.String()})
	}
	_, err = services.UpdateStatus(ctx, object, metav1.UpdateOptions{})
	return err
}

func serviceSpec(s *service.Service) corev1.ServiceSpec {
	spec := corev1.ServiceSpec{
		Type:                     corev1.ServiceTypeClusterIP,
		ClusterIP:                corev1.ClusterIPNone,
		ExternalIPs:              texts(s.ExternalIPs),
		LoadBalancerSourceRanges: texts(s.SourceRanges),
	}
	for _, ip := range s.ClusterIPs {
		spec.ClusterIPs = append(spec.ClusterIPs, ip.String())
		spec.ClusterIP = spec.ClusterIPs[0]
		spec.IPFamilies = append(spec.IPFamilies, map[bool]corev1.IPFamily{false: corev1.IPv4Protocol, true: corev1.IPv6Protocol}[ip.Is6()])
	}
	headless := len(s.ClusterIPs) == 0
	for _, p := range s.Ports {
		port := corev1.ServicePort{Name: p.Name, Protocol: protocols[p.Protocol], Port: int32(p.Number)}
		if p.NodePort != 0 && !headless { // the API server lets no headless Service have one
			port.NodePort = int32(p.NodePort)
			spec.Type = corev1.ServiceTypeNodePort
		}
		spec.Ports = append(spec.Ports, port)
	}
	if len(s.LoadBalancerIPs) > 0 {
		spec.Type = corev1.ServiceTypeLoadBalancer
		spec.AllocateLoadBalancerNodePorts = new(bool)
	}
	if spec.Type != corev1.ServiceTypeClusterIP || len(s.ExternalIPs) > 0 {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		if s.ExternalLocal {
			spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
	}
	if s.InternalLocal {
		local := corev1.ServiceInternalTrafficPolicyLocal
		spec.InternalTrafficPolicy = &local
	}
	if s.Affinity > 0 {
		seconds := int32(s.Affinity.Seconds())
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
		spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return spec
}

func (s *Server) applySlice(ctx context.Context, name service.Name, want *service.Slice) error {
	all := s.Client.DiscoveryV1().EndpointSlices(name.Namespace)
	if want == nil {
		err := all.Delete(ctx, name.Name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	object := endpointSlice(want)
	if now, err := all.Get(ctx, name.Name, metav1.GetOptions{}); err == nil && len(want.Endpoints) == 0 {
		object.AddressType = now.AddressType // which nothing else says, and which may not change
	}
	_, err := all.Update(ctx, object, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = all.Create(ctx, object, metav1.CreateOptions{})
	}
	return err
}

func endpointSlice(s *service.Slice) *discovery.EndpointSlice {
	out := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: s.Name.Name, Labels: map[string]string{discovery.LabelServiceName: s.Service}},
		AddressType: discovery.AddressTypeIPv4,
	}
	for _, p := range s.Ports {
		protocol, number := protocols[p.Protocol], int32(p.Number)
		out.Ports = append(out.Ports, discovery.EndpointPort{Name: &p.Name, Protocol: &protocol, Port: &number})
	}
	for _, e := range s.Endpoints {
		if e.Addr.Is6() {
			out.AddressType = discovery.AddressTypeIPv6
		}
		out.Endpoints = append(out.Endpoints, discovery.Endpoint{
			Addresses:  []string{e.Addr.String()},
			Conditions: discovery.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
			NodeName:   &e.Node,
			Hints:      hints(e),
		})
	}
	return out
}

func hints(e service.Endpoint) *discovery.EndpointHints {
	if len(e.ForZones)+len(e.ForNodes) == 0 {
		return nil
	}
	h := &discovery.EndpointHints{}
	for _, name := range e.ForZones {
		h.ForZones = append(h.ForZones, discovery.ForZone{Name: name})
	}
	for _, name := range e.ForNodes {
		h.ForNodes = append(h.ForNodes, discovery.ForNode{Name: name})
	}
	return h
}

var protocols = map[service.Protocol]corev1.Protocol{
	service.TCP:  corev1.ProtocolTCP,
	service.UDP:  corev1.ProtocolUDP,
	service.SCTP: corev1.ProtocolSCTP,
}

func texts[T netip.Addr | netip.Prefix](all []T) []string {
	var out []string
	for _, one := range all {
		out = append(out, fmt.Sprint(one))
	}
	return out
}
