package watch

import (
	"net/netip"

	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ServiceCIDR is a range, or one of each family, of which the cluster takes virtual
// IPs (networking.k8s.io/v1, Kubernetes 1.33).
type ServiceCIDR struct {
	Name  string
	CIDRs []netip.Prefix
}

const kindServiceCIDR = "ServiceCIDR"

func convertServiceCIDR(obj *networking.ServiceCIDR) (*ServiceCIDR, field.ErrorList) {
	errs := checkName(field.NewPath("metadata", "name"), obj.Name, validation.IsDNS1123Subdomain)
	c := &ServiceCIDR{Name: obj.Name}
	path := field.NewPath("spec", "cidrs")
	if len(obj.Spec.CIDRs) == 0 {
		return c, append(errs, field.Required(path, "a range of IPv4 or IPv6, or one of each"))
	}
	cidrs, wrong := parseCIDRs(entries(path, obj.Spec.CIDRs))
	c.CIDRs = cidrs
	return c, append(errs, wrong...)
}

// serviceCIDRFeed may be refused: API servers have the kind since Kubernetes 1.33, and
// not everybody may read it.
func serviceCIDRFeed() feed {
	return feed{
		kind:     kindServiceCIDR,
		group:    networking.SchemeGroupVersion,
		resource: "servicecidrs",
		fields:   fields.Everything(),
		example:  &networking.ServiceCIDR{},
		convert:  converts(convertServiceCIDR),
		optional: true,
	}
}
