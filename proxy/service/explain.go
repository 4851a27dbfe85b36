package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Explanation says how Lookup comes to what it says of a packet, for people. All
// texts are parts of sentences in plain words.
type Explanation struct {
	Verdict  Verdict       `json:"verdict"`
	Class    Class         `json:"class"` // of the sender
	Origin   Origin        `json:"-"`     // whose the destination is, unless Pass
	Affinity time.Duration `json:"affinityNanoseconds,omitempty"`

	Destination string `json:"destination"`          // what it is to the Service
	Sender      string `json:"sender"`               // why it is of its class
	Sources     string `json:"sources,omitempty"`    // why the sender is or is not allowed; "" where all are
	Policy      string `json:"policy,omitempty"`     // which endpoints may get the flow; "" with Pass
	Choice      string `json:"choice,omitempty"`     // why those of them do that do
	Masquerade  string `json:"masquerade,omitempty"` // why the sender's address is kept or not; "" unless Forward
	Endpoints   []Fate `json:"endpoints,omitempty"`  // all that the Service port has in the family, sorted by address
}

// Fate is what becomes of one endpoint of a Service.
type Fate struct {
	Addr       netip.AddrPort `json:"addr"`
	Node       string         `json:"node,omitempty"`
	Turns      bool           `json:"turns"`                // it gets new flows of this sender
	Why        string         `json:"why,omitempty"`        // why it does not, or is masqueraded for its own sake
	Masquerade bool           `json:"masquerade,omitempty"` // it sees an address of the node
}

// Explain is Lookup with its reasons.
func (r *Resolver) Explain(p Packet) Explanation {
	src, d := p.Src.Unmap(), r.table.Lookup(p)
	e := Explanation{Verdict: d.Verdict, Class: d.Class, Affinity: d.Affinity, Sender: r.explainSender(p)}
	key, f, ok := r.table.match(p.Dst, p.Protocol)
	if !ok {
		e.Class, e.Destination = r.table.classOf(p), r.explainPass(p.Dst, p.Protocol)
		return e
	}
	e.Origin = f.Origin
	svc := r.services[f.Origin.Service]
	kind := svc.kindOf(key)
	e.Destination = fmt.Sprintf("%s of %s", kind, f.Origin)
	e.Sources = explainSources(f, src)
	e.Policy = explainPolicy(svc, kind, e.Class)
	e.explainEndpoints(r.endpoints(svc, f.Origin.Port, key.Addr.Is6()), svc.localFor(kind, e.Class), d)
	if e.Verdict == Forward {
		e.Masquerade = explainMasquerade(d, kind, key.Addr.Is6(), r.here())
	}
	return e
}

// kind is what an address is to a Service.
type kind uint8

const (
	clusterIP kind = iota
	externalIP
	loadBalancerIP
	nodePort
)

func (k kind) String() string {
	return [...]string{"the cluster IP", "an external IP", "a load-balancer IP", "the node port"}[k]
}

func (k kind) internal() bool { return k == clusterIP }

// localFor says whether only endpoints of this node may get a flow.
func (s *Service) localFor(k kind, class Class) bool {
	if k.internal() {
		return s.InternalLocal
	}
	return s.ExternalLocal && class == FromOutside
}

func (s *Service) kindOf(key Key) kind {
	switch {
	case key.Addr.IsUnspecified():
		return nodePort
	case slices.Contains(s.ClusterIPs, key.Addr):
		return clusterIP
	case slices.Contains(s.ExternalIPs, key.Addr):
		return externalIP
	}
	return loadBalancerIP
}

func (r *Resolver) explainSender(p Packet) string {
	src := p.Src.Unmap()
	i := slices.IndexFunc(r.table.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(src) })
	switch class := r.table.classOf(p); {
	case class == FromNode && src.IsLoopback():
		return "this node: a loopback address"
	case class == FromNode:
		return "this node: one of its addresses"
	case class == FromPod && i >= 0:
		return fmt.Sprintf("a pod: in %s", r.table.PodCIDRs[i])
	case class == FromPod && r.table.Class(src, p.In) != FromPod:
		return "a pod: in a network namespace of this node"
	case class == FromPod:
		return fmt.Sprintf("a pod: behind the interface %s", p.In)
	case len(r.table.PodInterfaces) > 0:
		return fmt.Sprintf("outside: neither an address of this node nor behind an interface %s", strings.Join(r.table.PodInterfaces, " or "))
	case len(r.table.PodCIDRs) == 0:
		return "outside: not an address of this node, and the ranges of pods are not known"
	}
	return fmt.Sprintf("outside: neither an address of this node nor in %s", joined(r.table.PodCIDRs))
}

// explainPass says what is nearest to a destination that is no Service's.
func (r *Resolver) explainPass(dst netip.AddrPort, protocol Protocol) string {
	addr := dst.Addr().Unmap()
	var ports []string
	for key, f := range r.table.Frontends {
		if key.Addr == addr {
			ports = append(ports, fmt.Sprintf("%d/%s of %s", key.Port, key.Protocol, f.Origin))
		}
	}
	slices.Sort(ports)
	if len(ports) > 0 && dst.Port() == 0 {
		return "a Service's address: ask for one of its ports, " + strings.Join(ports, ", ")
	}
	if len(ports) > 0 {
		return fmt.Sprintf("a Service's address, but not port %d/%s; there is %s", dst.Port(), protocol, strings.Join(ports, ", "))
	}
	_, isNodePort := r.table.Frontends[Key{AnyNodeAddr(addr.Is6()), dst.Port(), protocol}]
	if isNodePort && slices.Contains(r.table.NodeAddrs, addr) {
		return fmt.Sprintf("an address of this node, but node ports are only on %s", joined(r.table.NodePortCIDRs))
	}
	return "no Service's"
}

func explainSources(f Frontend, src netip.Addr) string {
	if len(f.Sources) == 0 {
		return ""
	}
	i := slices.IndexFunc(f.Sources, func(p netip.Prefix) bool { return p.Contains(src) })
	if i < 0 {
		return fmt.Sprintf("refused: %s is in none of the source ranges %s", src, joined(f.Sources))
	}
	return fmt.Sprintf("allowed: in the source range %s", f.Sources[i])
}

// explainPolicy says which traffic policy counts, and what it means for a sender.
func explainPolicy(svc *Service, k kind, class Class) string {
	field, policy, means := "externalTrafficPolicy", "Cluster", "endpoints of all nodes"
	if k.internal() {
		field = "internalTrafficPolicy"
	}
	if svc.localFor(k, class) {
		policy, means = "Local", "endpoints of this node only"
	}
	if k.internal() || !svc.ExternalLocal || policy == "Local" {
		return fmt.Sprintf("%s %s: %s", field, policy, means)
	}
	return fmt.Sprintf("externalTrafficPolicy Local, but the sender is a %s: endpoints of all nodes, as if the flow had gone to a load balancer", class)
}

// endpoints are those of a Service port in one family, and the nodes they are on.
func (r *Resolver) endpoints(svc *Service, port string, ipv6 bool) located {
	i := slices.IndexFunc(svc.Ports, func(p ServicePort) bool { return p.Name == port })
	var from []*Slice
	nodes := map[netip.Addr]string{}
	for _, slice := range r.slices[svc.Name] {
		from = append(from, slice)
		for _, e := range slice.Endpoints {
			nodes[e.Addr] = e.Node
		}
	}
	return located{endpointsOf(svc.Ports[i].Port, ipv6, from, r.here()), nodes}
}

type located struct {
	all   []endpoint
	nodes map[netip.Addr]string // endpoint → node
}

// explainEndpoints says of each endpoint whether it has turns. local: only those
// of this node may.
func (e *Explanation) explainEndpoints(from located, local bool, d Decision) {
	chosen := choose(from.all)
	turns, by := chosen.cluster, chosen.clusterBy
	if local {
		turns, by = chosen.local, chosen.localBy
	}
	e.Choice = fmt.Sprintf("%d of %d: %s", len(turns), len(from.all), by)
	if len(turns) == 0 && chosen.any {
		e.Choice = fmt.Sprintf("0 of %d: those that could serve are on other nodes, so nothing is answered", len(from.all))
	}
	for _, endpoint := range from.all {
		fate := Fate{Addr: endpoint.addr, Node: from.nodes[endpoint.addr.Addr()]}
		fate.Turns = e.Verdict == Forward && slices.Contains(turns, endpoint.addr)
		switch {
		case fate.Turns:
			fate.Masquerade = d.Masquerades(endpoint.addr)
		case slices.Contains(turns, endpoint.addr):
			fate.Why = "the sender is refused"
		default:
			fate.Why = endpoint.leftOut(local, by)
		}
		e.Endpoints = append(e.Endpoints, fate)
	}
}

// leftOut says why an endpoint gets no new flows, where others got them by by.
func (e endpoint) leftOut(local bool, by criterion) string {
	switch {
	case !e.ready && e.lasting:
		return "terminates; flows that it has go on"
	case !e.ready:
		return "not ready"
	case local && !e.here:
		return "on another node"
	}
	return "ready, but not among the " + by.String()
}

// explainMasquerade says why the sender's address is kept or not. It speaks of the
// flow as a whole; a sender that is its own backend is told by Fate.
func explainMasquerade(d Decision, k kind, ipv6 bool, here place) string {
	switch {
	case d.masquerade && k.internal() && here.masqueradeAll:
		return "yes: that is so for all flows to cluster IPs here"
	case d.masquerade && k.internal():
		return "yes: the reply would not come back through this node otherwise"
	case d.masquerade && d.Class == FromNode:
		return "yes: the node's own address may be the one that it asks"
	case d.masquerade:
		return "yes: any node may get the flow, and the reply must come back through this one"
	case k.internal() && !here.podsKnown(ipv6):
		return "no: the ranges of pods are not known, so that nobody can be told from a pod"
	case k.internal():
		return "no: pods reach cluster IPs with their own address"
	case d.Class == FromOutside:
		return "no: externalTrafficPolicy Local keeps the sender's address"
	}
	return "no: pods reach pods with their own address"
}

func joined(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
