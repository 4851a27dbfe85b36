package watch

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fairlead/fairlead/proxy/service"
)

// The functions of this file turn API objects into structs. They check what the
// API server would check of the fields that are used, since a manifest has met no
// API server: later everything may rely on it, and names may be written into
// rules as they are. With any error the struct is of no use.

// labelProxyName is on a Service that another proxy than the node's serves.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// unusedBy has, for a kind, the label whose objects are not used: a Service of
// another proxy, and a slice of a Service without a cluster IP. They are those of
// kube-proxy.
var unusedBy = map[string]string{
	kindService: labelProxyName,
	kindSlice:   corev1.IsHeadlessService,
}

// convertName checks the metadata of a namespaced object. The rule of its name
// depends on the kind.
func convertName(meta metav1.ObjectMeta, rule func(string) []string) (service.Name, field.ErrorList) {
	path := field.NewPath("metadata")
	name := service.Name{Namespace: namespaceOf(meta.Namespace), Name: meta.Name}
	errs := checkName(path.Child("name"), name.Name, rule)
	return name, append(errs, checkName(path.Child("namespace"), name.Namespace, validation.IsDNS1123Label)...)
}

func namespaceOf(given string) string {
	if given == "" {
		return metav1.NamespaceDefault
	}
	return shared(given)
}

// shared is a text that many objects have: they share one copy of it.
func shared(text string) string { return unique.Make(text).Value() }

func checkName(path *field.Path, name string, rule func(string) []string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for _, message := range rule(name) {
		errs = append(errs, field.Invalid(path, name, message))
	}
	return errs
}

// convertPort checks one port of a Service or of a slice.
func convertPort(path *field.Path, name string, protocol corev1.Protocol, port int32) (service.Port, field.ErrorList) {
	var errs field.ErrorList
	if name != "" {
		errs = checkName(path.Child("name"), name, validation.IsDNS1123Label)
	}
	number, ok := protocols[protocol]
	if !ok {
		errs = append(errs, field.NotSupported(path.Child("protocol"), protocol,
			[]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
	}
	for _, message := range validation.IsValidPortNum(int(port)) {
		errs = append(errs, field.Invalid(path.Child("port"), port, message))
	}
	return service.Port{Name: shared(name), Protocol: number, Number: uint16(port)}, errs
}

// protocols has the API's names; an absent protocol means TCP.
var protocols = map[corev1.Protocol]service.Protocol{
	"":                  service.TCP,
	corev1.ProtocolTCP:  service.TCP,
	corev1.ProtocolUDP:  service.UDP,
	corev1.ProtocolSCTP: service.SCTP,
}

func convertSlice(obj *discovery.EndpointSlice) (*service.Slice, field.ErrorList) {
	name, errs := convertName(obj.ObjectMeta, validation.IsDNS1123Subdomain)
	ports, portErrs := slicePorts(obj.Ports)
	endpoints, endpointErrs := endpoints(obj)
	errs = append(errs, portErrs...)
	errs = append(errs, endpointErrs...)
	return &service.Slice{
		Name:      name,
		Service:   obj.Labels[discovery.LabelServiceName],
		Ports:     ports,
		Endpoints: endpoints,
		Triggered: triggered(obj),
	}, errs
}

// triggered is when what led to the slice happened; zero if nothing, or nonsense, is
// said of it.
func triggered(obj *discovery.EndpointSlice) time.Time {
	at, err := time.Parse(time.RFC3339Nano, obj.Annotations[corev1.EndpointsLastChangeTriggerTime])
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

func slicePorts(given []discovery.EndpointPort) ([]service.Port, field.ErrorList) {
	ports := make([]service.Port, 0, len(given))
	names := map[string]bool{}
	var errs field.ErrorList
	for i, p := range given {
		path := field.NewPath("ports").Index(i)
		if p.Port == nil {
			// To the API this means all ports, of which a Service port
			// cannot be led to any one.
			errs = append(errs, field.Required(path.Child("port"), "must be the port that a Service's traffic goes to"))
			continue
		}
		name := valueOr(p.Name, "")
		port, portErrs := convertPort(path, name, valueOr(p.Protocol, ""), *p.Port)
		errs = append(errs, portErrs...)
		if names[name] {
			errs = append(errs, field.Duplicate(path.Child("name"), name))
		}
		names[name] = true
		ports = append(ports, port)
	}
	return ports, errs
}

func endpoints(obj *discovery.EndpointSlice) ([]service.Endpoint, field.ErrorList) {
	path := field.NewPath("addressType")
	switch obj.AddressType {
	case discovery.AddressTypeIPv4, discovery.AddressTypeIPv6:
	case "":
		return nil, field.ErrorList{field.Required(path, "must be IPv4 or IPv6")}
	default:
		// FQDN too: the API gives it no meaning.
		return nil, field.ErrorList{field.NotSupported(path, obj.AddressType,
			[]discovery.AddressType{discovery.AddressTypeIPv4, discovery.AddressTypeIPv6})}
	}
	found := make([]service.Endpoint, 0, len(obj.Endpoints))
	var errs field.ErrorList
	for i, e := range obj.Endpoints {
		addr, err := endpointAddr(field.NewPath("endpoints").Index(i).Child("addresses"), obj.AddressType, e.Addresses)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, service.Endpoint{
			Addr:        addr,
			Ready:       valueOr(e.Conditions.Ready, true),
			Serving:     valueOr(e.Conditions.Serving, true),
			Terminating: valueOr(e.Conditions.Terminating, false),
			Node:        shared(valueOr(e.NodeName, "")),
			ForNodes:    names(e.Hints, func(h *discovery.EndpointHints) []discovery.ForNode { return h.ForNodes }),
			ForZones:    names(e.Hints, func(h *discovery.EndpointHints) []discovery.ForZone { return h.ForZones }),
		})
	}
	return found, errs
}

// names are those of one kind of hint.
func names[H discovery.ForNode | discovery.ForZone](hints *discovery.EndpointHints, of func(*discovery.EndpointHints) []H) []string {
	if hints == nil {
		return nil
	}
	var out []string
	for _, h := range of(hints) {
		out = append(out, shared(struct{ Name string }(h).Name))
	}
	return out
}

// endpointAddr returns the first address: the API gives further ones no meaning,
// and kube-proxy does not look at them either.
func endpointAddr(path *field.Path, family discovery.AddressType, addrs []string) (netip.Addr, *field.Error) {
	if len(addrs) == 0 {
		return netip.Addr{}, field.Required(path, "must have an address")
	}
	addr, err := parseUnicast(path.Index(0), addrs[0])
	if err != nil {
		return netip.Addr{}, err
	}
	if familyOf(addr) != corev1.IPFamily(family) {
		return netip.Addr{}, field.Invalid(path.Index(0), addrs[0], fmt.Sprintf("must be an %s address, as addressType says", family))
	}
	return addr, nil
}

func convertNode(obj *corev1.Node) (*service.Node, field.ErrorList) {
	meta := field.NewPath("metadata")
	errs := checkName(meta.Child("name"), obj.Name, validation.IsDNS1123Subdomain)
	if obj.Namespace != "" {
		errs = append(errs, field.Forbidden(meta.Child("namespace"), "a Node is in no namespace"))
	}
	addrs, addrErrs := nodeAddrs(obj.Status.Addresses)
	cidrs, cidrErrs := podCIDRs(&obj.Spec)
	errs = append(errs, addrErrs...)
	errs = append(errs, cidrErrs...)
	return &service.Node{
		Name:      obj.Name,
		Addresses: addrs,
		PodCIDRs:  cidrs,
		Zone:      obj.Labels[corev1.LabelTopologyZone],
		Created:   obj.CreationTimestamp.Time,
		Leaving:   leaving(obj),
	}, errs
}

// leaving says whether a node is about to go. The taint is the cluster
// autoscaler's, set before it drains a node that it will delete.
func leaving(obj *corev1.Node) bool {
	const taint = "ToBeDeletedByClusterAutoscaler"
	return obj.DeletionTimestamp != nil ||
		slices.ContainsFunc(obj.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taint })
}

// nodeAddrs are the addresses of a node, internal ones first: the first of a
// family is the node's primary one.
func nodeAddrs(given []corev1.NodeAddress) ([]netip.Addr, field.ErrorList) {
	path := field.NewPath("status", "addresses")
	var internal, external []netip.Addr
	var errs field.ErrorList
	for i, a := range given {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		addr, err := parseAddr(path.Index(i).Child("address"), a.Address)
		switch {
		case err != nil:
			errs = append(errs, err)
		case a.Type == corev1.NodeInternalIP:
			internal = append(internal, addr)
		default:
			external = append(external, addr)
		}
	}
	return append(internal, external...), errs
}

func podCIDRs(spec *corev1.NodeSpec) ([]netip.Prefix, field.ErrorList) {
	values, errs := plural(field.NewPath("spec"), "podCIDR", spec.PodCIDR, spec.PodCIDRs)
	cidrs, wrong := parseCIDRs(values)
	return cidrs, append(errs, wrong...)
}

func valueOr[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}
