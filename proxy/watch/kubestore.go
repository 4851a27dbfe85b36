package watch

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/proxy/service"
)

// kubeStore is where a reflector puts the objects of one kind. It implements
// cache.TransformingStore and cache.ReflectorBookmarkStore, none of whose calls
// can fail here.
type kubeStore struct {
	kube *Kube
	feed feed
}

// arrival is an object converted.
type arrival struct {
	Object
	finding
}

// Add implements cache.ReflectorStore.
func (s kubeStore) Add(obj any) error {
	a := s.arrived(obj)
	s.kube.note(a.Object, a.finding)
	return nil
}

// Update implements cache.ReflectorStore.
func (s kubeStore) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s kubeStore) Delete(obj any) error {
	s.kube.heard(s.feed.kind)
	s.kube.note(s.feed.nameOf(obj.(metav1.Object)), finding{})
	return nil
}

// Replace implements cache.ReflectorStore.
func (s kubeStore) Replace(objs []any, _ string) error {
	all := make([]arrival, len(objs))
	for i, obj := range objs {
		all[i] = s.arrived(obj)
	}
	s.kube.replace(s.feed.kind, all)
	return nil
}

// Resync implements cache.ReflectorStore; the reflector has no resync period.
func (kubeStore) Resync() error { return nil }

// Bookmark implements cache.ReflectorBookmarkStore.
func (s kubeStore) Bookmark(string) error {
	s.kube.heard(s.feed.kind)
	return nil
}

// Transformer implements cache.TransformingStore: a reflector that collects the
// first objects from a stream keeps them converted.
func (s kubeStore) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.arrived(obj), nil }
}

// arrived converts an object unless that was done on its way.
func (s kubeStore) arrived(obj any) arrival {
	if a, done := obj.(arrival); done {
		return a
	}
	s.kube.heard(s.feed.kind)
	return arrival{s.feed.nameOf(obj.(metav1.Object)), s.feed.find(obj)}
}

func (f feed) nameOf(obj metav1.Object) Object {
	return Object{Kind: f.kind, Name: service.Name{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
}

// find makes of an object what it can.
func (f feed) find(obj any) finding {
	meta := obj.(metav1.Object)
	found := finding{uid: meta.GetUID()}
	value, errs := f.convert(obj)
	if len(errs) == 0 {
		found.value = value
		return found
	}
	name := f.nameOf(meta)
	for _, err := range errs {
		found.problems = append(found.problems, Problem{Object: name, Field: err.Field, Message: err.ErrorBody()})
	}
	return found
}

// converts makes a convert function take any object.
func converts[T, S any](convert func(*T) (*S, field.ErrorList)) func(any) (any, field.ErrorList) {
	return func(obj any) (any, field.ErrorList) { return convert(obj.(*T)) }
}
