package watch

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The kinds of Fairlead's own API that a directory may have beside those of
// Kubernetes. What they mean is for package ipam/pool to say.
const (
	kindIPPool  = "IPPool"
	kindIPBlock = "IPBlock"

	fairleadVersion = "fairlead.dev/v1alpha1"
)

// IPPool is an IPPool as it is written.
type IPPool struct {
	Name string
	Spec IPPoolSpec
}

// IPPoolSpec has the fields of deploy/chart/crds/ippool.yaml.
type IPPoolSpec struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Gateway    string `json:"gateway,omitempty"`
	BlockSize  int    `json:"blockSize,omitempty"`
}

// IPBlock is an IPBlock as it is written.
type IPBlock struct {
	Name string
	Spec IPBlockSpec
}

// IPBlockSpec has the fields of deploy/chart/crds/ipblock.yaml.
type IPBlockSpec struct {
	Pool    string `json:"pool"`
	Block   string `json:"block"`
	Node    string `json:"node"`
	Network string `json:"network,omitempty"`
	Claim   string `json:"claim,omitempty"`
}

// own is an object of Fairlead's own API.
type own[S any] struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              S `json:"spec"`
}

func convertIPPool(obj *own[IPPoolSpec]) (*IPPool, field.ErrorList) {
	return &IPPool{obj.Name, obj.Spec}, checkOwnName(obj.ObjectMeta)
}

func convertIPBlock(obj *own[IPBlockSpec]) (*IPBlock, field.ErrorList) {
	return &IPBlock{obj.Name, obj.Spec}, checkOwnName(obj.ObjectMeta)
}

func checkOwnName(obj metav1.ObjectMeta) field.ErrorList {
	meta := field.NewPath("metadata")
	errs := checkName(meta.Child("name"), obj.Name, validation.IsDNS1123Subdomain)
	if obj.Namespace != "" {
		errs = append(errs, field.Forbidden(meta.Child("namespace"), "it is in no namespace"))
	}
	return errs
}

// put takes in an object, as one that is gone if it is.
func (n *News) put(key Object, value any, gone bool) {
	switch value := value.(type) {
	case *IPPool:
		n.IPPools[key.Name.Name] = unless(gone, value)
	case *IPBlock:
		n.IPBlocks[key.Name.Name] = unless(gone, value)
	case *ServiceCIDR:
		n.ServiceCIDRs[key.Name.Name] = unless(gone, value)
	default:
		put(n.Update, key.Name, value, gone)
	}
}
