package watch

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fairlead/fairlead/proxy/service"
)

func convertService(obj *corev1.Service) (*service.Service, field.ErrorList) {
	spec := &obj.Spec
	name, errs := convertName(obj.ObjectMeta, validation.IsDNS1123Label)
	out := &service.Service{Name: name, Created: obj.CreationTimestamp.Time}
	for _, part := range []func() field.ErrorList{
		func() (e field.ErrorList) { out.ClusterIPs, e = clusterIPs(spec); return e },
		func() (e field.ErrorList) { out.ExternalIPs, e = externalIPs(spec); return e },
		func() (e field.ErrorList) { out.LoadBalancerIPs, e = ingressIPs(&obj.Status); return e },
		func() (e field.ErrorList) { out.SourceRanges, e = sourceRanges(spec); return e },
		func() (e field.ErrorList) { out.InternalLocal, out.ExternalLocal, e = policies(spec); return e },
		func() (e field.ErrorList) { out.Affinity, e = affinity(spec); return e },
		func() (e field.ErrorList) { out.ResetOnRemoval, e = onRemoval(obj.Annotations); return e },
		func() (e field.ErrorList) { out.HealthCheckPort, e = healthCheckPort(spec); return e },
		func() (e field.ErrorList) { out.Ports, e = servicePorts(spec); return e },
	} {
		errs = append(errs, part()...)
	}
	return out, errs
}

// clusterIPs returns the virtual IPs of a Service: none if it is headless, if it
// is but a name for something outside, or if it was given none.
func clusterIPs(spec *corev1.ServiceSpec) ([]netip.Addr, field.ErrorList) {
	path := field.NewPath("spec")
	switch spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		return nil, nil
	default:
		return nil, field.ErrorList{field.NotSupported(path.Child("type"), spec.Type, []corev1.ServiceType{
			corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
			corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName,
		})}
	}
	if spec.ClusterIP == corev1.ClusterIPNone && len(spec.ClusterIPs) == 0 {
		return nil, nil
	}
	values, errs := plural(path, "clusterIP", spec.ClusterIP, spec.ClusterIPs)
	if len(values) == 1 && values[0].text == corev1.ClusterIPNone {
		return nil, errs
	}
	var families onePerFamily
	var ips []netip.Addr
	for i, v := range values {
		ip, err := parseUnicast(v.path, v.text)
		if err == nil {
			err = families.add(v, ip)
		}
		if err == nil && i < len(spec.IPFamilies) && spec.IPFamilies[i] != familyOf(ip) {
			err = field.Invalid(v.path, v.text, fmt.Sprintf("must be an %s address, as spec.ipFamilies[%d] says", spec.IPFamilies[i], i))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips = append(ips, ip)
	}
	return ips, errs
}

func servicePorts(spec *corev1.ServiceSpec) ([]service.ServicePort, field.ErrorList) {
	type number struct {
		protocol service.Protocol
		port     uint16
	}
	path := field.NewPath("spec", "ports")
	ports := make([]service.ServicePort, 0, len(spec.Ports))
	names, numbers := map[string]bool{}, map[number]bool{}
	var errs field.ErrorList
	for i, p := range spec.Ports {
		path := path.Index(i)
		port, portErrs := convertPort(path, p.Name, p.Protocol, p.Port)
		errs = append(errs, portErrs...)
		key := number{port.Protocol, port.Number}
		switch {
		case p.Name == "" && len(spec.Ports) > 1:
			errs = append(errs, field.Required(path.Child("name"), "must tell the ports of a Service apart"))
		case names[p.Name]:
			errs = append(errs, field.Duplicate(path.Child("name"), p.Name))
		case len(portErrs) == 0 && numbers[key]:
			errs = append(errs, field.Duplicate(path, fmt.Sprintf("%d/%s", p.Port, port.Protocol)))
		}
		names[p.Name], numbers[key] = true, true
		if p.NodePort != 0 {
			errs = append(errs, checkNodePort(path.Child("nodePort"), p.NodePort)...)
		}
		ports = append(ports, service.ServicePort{Port: port, NodePort: uint16(p.NodePort)})
	}
	return ports, errs
}

func healthCheckPort(spec *corev1.ServiceSpec) (uint16, field.ErrorList) {
	port := spec.HealthCheckNodePort
	if port == 0 {
		return 0, nil
	}
	return uint16(port), checkNodePort(field.NewPath("spec", "healthCheckNodePort"), port)
}

// checkNodePort checks a node port that is there.
func checkNodePort(path *field.Path, port int32) field.ErrorList {
	var errs field.ErrorList
	for _, message := range validation.IsValidPortNum(int(port)) {
		errs = append(errs, field.Invalid(path, port, message))
	}
	return errs
}

func externalIPs(spec *corev1.ServiceSpec) ([]netip.Addr, field.ErrorList) {
	var ips []netip.Addr
	var errs field.ErrorList
	for i, text := range spec.ExternalIPs {
		ip, err := parseUnicast(field.NewPath("spec", "externalIPs").Index(i), text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips = append(ips, ip)
	}
	return ips, errs
}

// ingressIPs are the addresses of the load balancer, without those behind which
// it is a proxy of its own, and those of which only a host name is known.
func ingressIPs(status *corev1.ServiceStatus) ([]netip.Addr, field.ErrorList) {
	var ips []netip.Addr
	var errs field.ErrorList
	for i, ingress := range status.LoadBalancer.Ingress {
		if ingress.IP == "" || valueOr(ingress.IPMode, corev1.LoadBalancerIPModeVIP) == corev1.LoadBalancerIPModeProxy {
			continue
		}
		ip, err := parseUnicast(field.NewPath("status", "loadBalancer", "ingress").Index(i).Child("ip"), ingress.IP)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips = append(ips, ip)
	}
	return ips, errs
}

func sourceRanges(spec *corev1.ServiceSpec) ([]netip.Prefix, field.ErrorList) {
	var ranges []netip.Prefix
	var errs field.ErrorList
	for i, text := range spec.LoadBalancerSourceRanges {
		r, err := parseCIDR(field.NewPath("spec", "loadBalancerSourceRanges").Index(i), strings.TrimSpace(text))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ranges = append(ranges, r)
	}
	return ranges, errs
}

// policies are the traffic policies that are Local.
func policies(spec *corev1.ServiceSpec) (internal, external bool, errs field.ErrorList) {
	path := field.NewPath("spec")
	switch p := valueOr(spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster); p {
	case corev1.ServiceInternalTrafficPolicyCluster:
	case corev1.ServiceInternalTrafficPolicyLocal:
		internal = true
	default:
		errs = append(errs, field.NotSupported(path.Child("internalTrafficPolicy"), p,
			[]corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}))
	}
	switch p := spec.ExternalTrafficPolicy; p {
	case "", corev1.ServiceExternalTrafficPolicyCluster:
	case corev1.ServiceExternalTrafficPolicyLocal:
		external = true
	default:
		errs = append(errs, field.NotSupported(path.Child("externalTrafficPolicy"), p,
			[]corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}))
	}
	return internal, external, errs
}

// What becomes of TCP connections to an endpoint that goes: by default they are left
// to end by themselves.
const (
	onRemovalAnnotation = "fairlead.dev/on-removal"
	onRemovalReset      = "reset"
)

// onRemoval says whether such connections are reset.
func onRemoval(annotations map[string]string) (bool, field.ErrorList) {
	value, ok := annotations[onRemovalAnnotation]
	if ok && value != onRemovalReset {
		path := field.NewPath("metadata", "annotations").Key(onRemovalAnnotation)
		return false, field.ErrorList{field.NotSupported(path, value, []string{onRemovalReset})}
	}
	return ok, nil
}

// affinity is for how long a client stays with its endpoint.
func affinity(spec *corev1.ServiceSpec) (time.Duration, field.ErrorList) {
	path := field.NewPath("spec")
	switch spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		return 0, nil
	case corev1.ServiceAffinityClientIP:
	default:
		return 0, field.ErrorList{field.NotSupported(path.Child("sessionAffinity"), spec.SessionAffinity,
			[]corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone})}
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil {
		seconds = valueOr(c.ClientIP.TimeoutSeconds, seconds)
	}
	if longest := int32(24 * time.Hour / time.Second); seconds <= 0 || seconds > longest {
		return 0, field.ErrorList{field.Invalid(path.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), seconds,
			fmt.Sprintf("must be 1 to %d", longest))}
	}
	return time.Duration(seconds) * time.Second, nil
}
