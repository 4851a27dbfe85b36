package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Object is a Kubernetes object with kind and apiVersion set, as a user writes
// it to a file.
type Object interface {
	metav1.Object
	runtime.Object
}

// Apply writes objects to the manifest directory of every node, each to a file
// of its own that replaces the object's former one in one step.
func (l *Lab) Apply(objects ...Object) error {
	for _, o := range objects {
		data, err := yaml.Marshal(o)
		if err != nil {
			return fmt.Errorf("encode %s: %w", manifestName(o), err)
		}
		for _, n := range l.Nodes {
			if err := writeFile(filepath.Join(n.Manifests(), manifestName(o)), data); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete takes objects away from every node. It is no error if they are not
// there.
func (l *Lab) Delete(objects ...Object) error {
	for _, o := range objects {
		for _, n := range l.Nodes {
			err := os.Remove(filepath.Join(n.Manifests(), manifestName(o)))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// manifestName is the object's file: service-default-web.yaml, node-node-1.yaml.
func manifestName(o Object) string {
	parts := []string{o.GetObjectKind().GroupVersionKind().Kind, o.GetNamespace(), o.GetName()}
	if parts[1] == "" {
		parts = append(parts[:1], parts[2])
	}
	return strings.ToLower(strings.Join(parts, "-")) + ".yaml"
}

// NodeObjects are the nodes as Kubernetes knows them.
func (l *Lab) NodeObjects() []*corev1.Node {
	var objects []*corev1.Node
	for _, n := range l.Nodes {
		o := &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
		}
		for _, podCIDR := range n.PodCIDRs {
			o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, podCIDR.String())
		}
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
		for _, a := range n.Addrs {
			o.Status.Addresses = append(o.Status.Addresses,
				corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
		objects = append(objects, o)
	}
	return objects
}
