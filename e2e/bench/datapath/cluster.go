package datapath

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/bench/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
)

// MaxServices is how many fit the range of cluster IPs, 10.96.0.0/15.
const MaxServices = 100_000

// endpointsEach is how many endpoints each of the many Services has. Nobody is
// there: what is measured goes to the Services web and switch.
const endpointsEach = 5

// Where the measured Services are.
var (
	webVIP      = pair("10.96.0.10", "fd00:10:96::a")
	switchVIP   = pair("10.96.0.11", "fd00:10:96::b")
	webExternal = pair("198.51.100.7", "2001:db8:7::7")
)

const webNodePort = 30080

// nodeObject is the node as the cluster knows it.
func nodeObject() *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:10:244:1::/64"}},
	}
	for _, a := range nodeAddr {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return n
}

// measured are the objects of the Services that traffic goes to: web, and switch,
// whose one endpoint is that of the name.
func measured(switchTo string) []apiserver.Object {
	web := lab.NewService("web", webVIP[0].String(), webVIP[1].String())
	web.Spec.Type = corev1.ServiceTypeNodePort
	for i := range web.Spec.Ports {
		web.Spec.Ports[i].NodePort = webNodePort
	}
	for _, a := range webExternal {
		web.Spec.ExternalIPs = append(web.Spec.ExternalIPs, a.String())
	}
	objects := []apiserver.Object{nodeObject(), web, lab.NewService("switch", switchVIP[0].String(), switchVIP[1].String())}
	objects = append(objects, slicesOf("web", "a", "b", "c")...)
	return append(objects, slicesOf("switch", switchTo)...)
}

// slicesOf are the EndpointSlices of a Service of lab.NewService, one a family.
func slicesOf(service string, backends ...string) []apiserver.Object {
	var objects []apiserver.Object
	for i, family := range []discovery.AddressType{discovery.AddressTypeIPv4, discovery.AddressTypeIPv6} {
		var addrs []netip.Addr
		for _, b := range backends {
			addrs = append(addrs, backendAddr[b][i])
		}
		s := endpointSlice(fmt.Sprintf("%s-%s", service, []string{"4", "6"}[i]), service, family, addrs)
		for _, network := range []corev1.Protocol{"tcp", "udp", "sctp"} {
			protocol := map[corev1.Protocol]corev1.Protocol{"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}[network]
			s.Ports = append(s.Ports, discovery.EndpointPort{
				Name: new(string(network)), Protocol: &protocol, Port: new(int32(podPort)),
			})
		}
		objects = append(objects, s)
	}
	return objects
}

func endpointSlice(name, service string, family discovery.AddressType, addrs []netip.Addr) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "default", Labels: map[string]string{discovery.LabelServiceName: service},
		},
		AddressType: family,
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{
			Addresses:  []string{a.String()},
			Conditions: discovery.EndpointConditions{Ready: new(true)},
			NodeName:   new(nodeName),
		})
	}
	return s
}

// many are Services from one number to before another, with their endpoints.
func many(from, to int) []apiserver.Object {
	var objects []apiserver.Object
	for i := from; i < to; i++ {
		name := fmt.Sprintf("many-%d", i)
		n := i + 256
		vip := fmt.Sprintf("10.%d.%d.%d", 96+n>>16, n>>8&0xff, n&0xff)
		objects = append(objects, &corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: vip, ClusterIPs: []string{vip},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				Ports:      []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
			},
		})
		var addrs []netip.Addr
		for j := range endpointsEach {
			e := i*endpointsEach + j
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(128 + e>>16), byte(e >> 8), byte(e)}))
		}
		s := endpointSlice(name+"-4", name, discovery.AddressTypeIPv4, addrs)
		s.Ports = []discovery.EndpointPort{{Name: new(""), Protocol: new(corev1.ProtocolTCP), Port: new(int32(podPort))}}
		objects = append(objects, s)
	}
	return objects
}
