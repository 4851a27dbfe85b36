package lab

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairlead/fairlead/e2e/echo"
)

// ServicePort is the port of a Service that NewService makes.
const ServicePort = 80

// NewService is a Service in the namespace default that leads ServicePort, over
// each of Networks, to the servers in pods. Its families are those of its
// cluster IPs.
func NewService(name string, clusterIPs ...string) *corev1.Service {
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			Selector:   map[string]string{"app": name},
			ClusterIP:  clusterIPs[0],
			ClusterIPs: clusterIPs,
		},
	}
	for _, ip := range clusterIPs {
		service.Spec.IPFamilies = append(service.Spec.IPFamilies, familyOf(ip))
	}
	for _, network := range Networks {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{
			Name:       network,
			Protocol:   corev1.Protocol(strings.ToUpper(network)),
			Port:       ServicePort,
			TargetPort: intstr.FromInt32(PodPort),
		})
	}
	return service
}

func familyOf(ip string) corev1.IPFamily {
	if netip.MustParseAddr(ip).Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// VIPs are the virtual IPs of a Service with its ports.
func VIPs(service *corev1.Service) []echo.Endpoint {
	var vips []echo.Endpoint
	for _, ip := range service.Spec.ClusterIPs {
		for _, p := range service.Spec.Ports {
			vips = append(vips, echo.Endpoint{
				Network: strings.ToLower(string(p.Protocol)),
				Addr:    netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(p.Port)),
			})
		}
	}
	return vips
}

// Slices are what Kubernetes' EndpointSlice controller makes of a Service whose
// pods are these: a slice for each of its families, every pod ready.
func Slices(service *corev1.Service, pods ...*Pod) []Object {
	var objects []Object
	for _, family := range service.Spec.IPFamilies {
		s := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Name:      service.Name + "-" + strings.ToLower(string(family)),
				Namespace: service.Namespace,
				Labels:    map[string]string{discoveryv1.LabelServiceName: service.Name},
			},
			AddressType: discoveryv1.AddressType(family),
			Ports:       slicePorts(service),
			Endpoints:   []discoveryv1.Endpoint{},
		}
		for _, p := range pods {
			s.Endpoints = append(s.Endpoints, endpoint(p, p.addr(family), service.Namespace))
		}
		objects = append(objects, s)
	}
	return objects
}

func slicePorts(service *corev1.Service) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for _, p := range service.Spec.Ports {
		port := p.TargetPort.IntVal
		if port == 0 {
			port = p.Port
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	return ports
}

func endpoint(p *Pod, addr netip.Addr, namespace string) discoveryv1.Endpoint {
	ready := true
	return discoveryv1.Endpoint{
		Addresses:  []string{addr.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		NodeName:   &p.Node.Name,
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: p.Name},
	}
}

func (p *Pod) addr(family corev1.IPFamily) netip.Addr {
	if family == corev1.IPv6Protocol {
		return p.IPv6()
	}
	return p.IPv4()
}
