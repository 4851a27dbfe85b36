// Package service gives Kubernetes Services their meaning, in one place: it
// resolves what is known of a cluster (Services, EndpointSlices, Nodes as plain
// structs) into a Table, which says for every destination what becomes of a new
// flow. Backends compile the Table and interpret nothing.
//
// It is pure: standard library only, no I/O, no clock, no Kubernetes types. Its
// input comes from proxy/watch, its output goes to the backends of proxy.
package service

import (
	"cmp"
	"net/netip"
	"time"
)

// Name is an object's namespace and name.
type Name struct {
	Namespace, Name string
}

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, then by name.
func (n Name) Compare(m Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, m.Namespace), cmp.Compare(n.Name, m.Name))
}

// Protocol is an IANA protocol number.
type Protocol uint8

// The protocols that a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the protocol's name in lower case, as netfilter and /etc/protocols
// spell it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "invalid"
}

// Service is the part of a Service object that has a meaning for a proxy.
type Service struct {
	Name    Name
	Created time.Time // decides between two Services that claim one address
	// ClusterIPs has at most one address of each family; none for a headless
	// Service.
	ClusterIPs []netip.Addr
	// ExternalIPs are addresses that the operator routes to this node.
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are those of status.loadBalancer.ingress that this node
	// answers for (ipMode VIP, not Proxy).
	LoadBalancerIPs []netip.Addr
	// SourceRanges are who may use the load-balancer IPs; empty: everybody.
	SourceRanges []netip.Prefix
	// InternalLocal and ExternalLocal are the traffic policies "Local": of flows
	// to cluster IPs, and of flows to all other addresses.
	InternalLocal, ExternalLocal bool
	// HealthCheckPort is where a load balancer asks whether this node has
	// endpoints, with ExternalLocal; 0: nowhere.
	HealthCheckPort uint16
	// Affinity is for how long after its last flow a client goes to the same
	// endpoint again; 0: flows take turns.
	Affinity time.Duration
	// ResetOnRemoval: TCP connections to an endpoint that goes are reset, instead of
	// being left to end by themselves.
	ResetOnRemoval bool
	Ports          []ServicePort
}

// Port is a port of a slice, or of a Service.
type Port struct {
	Name     string // ties the port of a Service to that of its slices; may be ""
	Protocol Protocol
	Number   uint16
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Port
	NodePort uint16 // on the node's own addresses; 0: none
}

// Slice is one EndpointSlice. Every endpoint serves on every port.
type Slice struct {
	Name Name
	// Service is the label kubernetes.io/service-name: a Service in the same
	// namespace, or "".
	Service   string
	Ports     []Port
	Endpoints []Endpoint
	// Triggered is when that happened because of which the slice became what it is,
	// as the cluster's controllers have it (KEP-752); zero: not known. It has no
	// meaning but for measuring.
	Triggered time.Time
}

// Endpoint is one address of a slice with its conditions. Watch has replaced
// conditions that are absent by what the API says they then mean: Ready true,
// Serving true, Terminating false.
type Endpoint struct {
	Addr                        netip.Addr
	Ready, Serving, Terminating bool
	Node                        string
	// ForNodes and ForZones are the hints: who should use this endpoint.
	ForNodes, ForZones []string
}

// Node is the part of a Node object that has a meaning for a proxy.
type Node struct {
	Name string
	// Addresses are the InternalIP entries of status.addresses, then the
	// ExternalIP ones, in the object's order.
	Addresses []netip.Addr
	// PodCIDRs has at most one prefix of each family.
	PodCIDRs []netip.Prefix
	Zone     string // label topology.kubernetes.io/zone
	Created  time.Time
	// Leaving: the node is being deleted, by itself or by the cluster autoscaler.
	Leaving bool
}

// Update is what became known since the update before: a key with nil is an
// object that is gone. The first update of a source carries all there is.
type Update struct {
	Services map[Name]*Service
	Slices   map[Name]*Slice
	Nodes    map[string]*Node
}

// Empty says that the update changes nothing.
func (u Update) Empty() bool {
	return len(u.Services) == 0 && len(u.Slices) == 0 && len(u.Nodes) == 0
}
