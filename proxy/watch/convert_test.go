package watch

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/proxy/service"
)

// opaque are the types that cmp must not look into.
var opaque = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// TestConvert has a row for each thing that an API object may leave out or say
// in several ways. What it must not say is in TestProblems.
func TestConvert(t *testing.T) {
	web := service.Name{Namespace: "default", Name: "web"}
	addr := netip.MustParseAddr
	tests := []struct {
		name, manifest string
		want           any
	}{{
		name: "least Service",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}`,
		want: &service.Service{Name: web},
	}, {
		name: "full Service",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: 2024-05-01T10:00:00Z}
spec:
  type: LoadBalancer
  ipFamilies: [IPv6, IPv4]
  clusterIP: fd00::1
  clusterIPs: ["fd00::1", 10.0.0.1]
  externalIPs: [198.51.100.1]
  loadBalancerSourceRanges: [203.0.113.0/24, " 2001:db8::/32"]
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
  - {name: sig, port: 3868, protocol: SCTP}
status:
  loadBalancer:
    ingress:
    - {ip: 192.0.2.1}
    - {ip: "2001:db8::1", ipMode: VIP}
    - {ip: 192.0.2.2, ipMode: Proxy}
    - {hostname: lb.example.com}`,
		want: &service.Service{
			Name:            service.Name{Namespace: "shop", Name: "web"},
			Created:         time.Date(2024, 5, 1, 10, 0, 0, 0, time.UTC),
			ClusterIPs:      []netip.Addr{addr("fd00::1"), addr("10.0.0.1")},
			ExternalIPs:     []netip.Addr{addr("198.51.100.1")},
			LoadBalancerIPs: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
			SourceRanges:    []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			InternalLocal:   true,
			ExternalLocal:   true,
			Affinity:        time.Minute,
			HealthCheckPort: 30999,
			Ports: []service.ServicePort{
				{Port: service.Port{Name: "http", Protocol: service.TCP, Number: 80}, NodePort: 30080},
				{Port: service.Port{Name: "dns", Protocol: service.UDP, Number: 53}},
				{Port: service.Port{Name: "dns-tcp", Protocol: service.TCP, Number: 53}},
				{Port: service.Port{Name: "sig", Protocol: service.SCTP, Number: 3868}},
			},
		},
	}, {
		name: "affinity of the default length",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {sessionAffinity: ClientIP}`,
		want: &service.Service{Name: web, Affinity: 3 * time.Hour},
	}, {
		name: "connections to endpoints that go are reset",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {fairlead.dev/on-removal: reset, other: x}}`,
		want: &service.Service{Name: web, ResetOnRemoval: true},
	}, {
		name: "clusterIP alone",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.0.0.1}`,
		want: &service.Service{Name: web, ClusterIPs: []netip.Addr{addr("10.0.0.1")}},
	}, {
		name: "clusterIPs alone",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIPs: [10.0.0.1]}`,
		want: &service.Service{Name: web, ClusterIPs: []netip.Addr{addr("10.0.0.1")}},
	}, {
		name: "headless",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None}`,
		want: &service.Service{Name: web},
	}, {
		name: "headless in both fields",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, clusterIPs: [None]}`,
		want: &service.Service{Name: web},
	}, {
		name: "ExternalName",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: ExternalName, externalName: example.com, clusterIP: 10.0.0.1}`,
		want: &service.Service{Name: web},
	}, {
		name: "port without name and protocol",
		manifest: `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}`,
		want: &service.Service{Name: web, Ports: []service.ServicePort{{Port: service.Port{Protocol: service.TCP, Number: 80}}}},
	}, {
		name: "least slice",
		manifest: `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web}
addressType: IPv4`,
		want: &service.Slice{Name: web},
	}, {
		name: "slice of a Service, absent fields of ports and endpoints",
		manifest: `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web.v6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports:
- {port: 80}
- {name: sig, port: 3868, protocol: SCTP}
endpoints:
- addresses: ["fd00::1"]`,
		want: &service.Slice{
			Name:    service.Name{Namespace: "default", Name: "web.v6"},
			Service: "web",
			Ports: []service.Port{
				{Protocol: service.TCP, Number: 80},
				{Name: "sig", Protocol: service.SCTP, Number: 3868},
			},
			Endpoints: []service.Endpoint{{Addr: addr("fd00::1"), Ready: true, Serving: true}},
		},
	}, {
		name: "conditions and node of endpoints, the first of several addresses",
		manifest: `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: false}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}, nodeName: n1}
- {addresses: [10.0.0.3, 10.0.0.4], conditions: {ready: true, serving: false}, hints: {forNodes: [{name: n1}], forZones: [{name: z1}, {name: z2}]}}`,
		want: &service.Slice{
			Name: web,
			Endpoints: []service.Endpoint{
				{Addr: addr("10.0.0.1"), Serving: true},
				{Addr: addr("10.0.0.2"), Serving: true, Terminating: true, Node: "n1"},
				{Addr: addr("10.0.0.3"), Ready: true, ForNodes: []string{"n1"}, ForZones: []string{"z1", "z2"}},
			},
		},
	}, {
		name: "least Node",
		manifest: `
apiVersion: v1
kind: Node
metadata: {name: n1}`,
		want: &service.Node{Name: "n1"},
	}, {
		name: "full Node",
		manifest: `
apiVersion: v1
kind: Node
metadata: {name: n1.example.com, labels: {topology.kubernetes.io/zone: z1}}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:1::/64"]
status:
  capacity: {cpu: "2", memory: 4Gi}
  addresses:
  - {type: Hostname, address: n1}
  - {type: ExternalIP, address: 203.0.113.7}
  - {type: InternalIP, address: "fd00::7"}
  - {type: InternalIP, address: 192.168.0.7}`,
		want: &service.Node{
			Name:      "n1.example.com",
			Zone:      "z1",
			Addresses: []netip.Addr{addr("fd00::7"), addr("192.168.0.7"), addr("203.0.113.7")},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		},
	}, {
		name: "Node that the autoscaler will delete",
		manifest: `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}`,
		want: &service.Node{Name: "n1", Leaving: true},
	}, {
		name: "podCIDR alone",
		manifest: `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24}`,
		want: &service.Node{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
	}, {
		name: "ServiceCIDR",
		manifest: `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes, uid: b0a7, finalizers: [networking.k8s.io/service-cidr-finalizer]}
spec: {cidrs: [10.96.0.0/16, "fd00:96::/112"]}
status: {conditions: [{type: Ready, status: "True"}]}`,
		want: &ServiceCIDR{Name: "kubernetes", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := decode([]byte(tt.manifest))
			if len(c.problems) > 0 || len(c.objects) != 1 {
				t.Fatalf("got %d objects and the problems %v, want one object", len(c.objects), c.problems)
			}
			if diff := cmp.Diff(tt.want, c.objects[0].value, opaque, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

// When a slice's cause happened is kept where the controllers say it.
func TestTriggered(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for text, want := range map[string]time.Time{at.Format(time.RFC3339Nano): at, "yesterday": {}, "": {}} {
		slice := &discovery.EndpointSlice{AddressType: discovery.AddressTypeIPv4}
		slice.Name, slice.Annotations = "web-1", map[string]string{corev1.EndpointsLastChangeTriggerTime: text}
		got, errs := convertSlice(slice)
		if len(errs) > 0 || !got.Triggered.Equal(want) {
			t.Errorf("%q: %v, %v", text, got.Triggered, errs)
		}
	}
}
