package watch

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	kuberecord "k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// Events tells whoever looks at an object of the cluster (kubectl describe, kubectl
// get events) what is wrong with it. Telling waits for nothing: what an API server
// that is away cannot take is kept for it, up to a thousand Events, and tried again
// for about two minutes each. The same told again is one Event with a count.
//
// It is safe for concurrent use, and ends with the source that it is of.
type Events struct {
	kube     *Kube
	recorder kuberecord.EventRecorder
}

// NewEvents returns what tells of objects of this source, in the name of a
// component like "fairlead-proxy" on the source's node. refused is called with why
// the API server does not take an Event, most often that the program may not
// create any; one that is not answered is not refused.
func (k *Kube) NewEvents(component string, refused func(error)) (*Events, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	client, err := newClient(k.config, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	broadcaster := kuberecord.NewBroadcaster(kuberecord.WithContext(klog.NewContext(k.ctx, logr.Discard())))
	broadcaster.StartRecordingToSink(eventSink{k.ctx, client, refused})
	recorder := broadcaster.NewRecorder(scheme, corev1.EventSource{Component: component, Host: k.node})
	return &Events{k, recorder}, nil
}

// Warn tells what is wrong with an object. The reason is a word for programs, in
// UpperCamelCase, the message a sentence for people.
func (e *Events) Warn(o Object, reason, message string) {
	e.recorder.Event(e.kube.reference(o), corev1.EventTypeWarning, reason, message)
}

// WarnUID is Warn for an object that the source does not watch, whose UID it
// cannot know.
func (e *Events) WarnUID(o Object, uid, reason, message string) {
	ref := e.kube.reference(o)
	ref.UID = types.UID(uid)
	e.recorder.Event(ref, corev1.EventTypeWarning, reason, message)
}

// reference is an object as an Event names it. That of a Node has its name for a
// UID: so the kubelet and kube-proxy do it, and there is where kubectl looks.
func (k *Kube) reference(o Object) *corev1.ObjectReference {
	ref := &corev1.ObjectReference{Kind: o.Kind, APIVersion: kinds[o.Kind].apiVersion, Namespace: o.Name.Namespace, Name: o.Name.Name}
	if o.Kind == kindNode {
		ref.UID = types.UID(o.Name.Name)
		return ref
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.records[o]; r != nil {
		ref.UID = r.now.uid
	}
	return ref
}

// eventSink writes Events to an API server. It implements record.EventSink, whose
// errors must be the client's own.
type eventSink struct {
	ctx     context.Context
	client  rest.Interface
	refused func(error)
}

// eventTimeout ends a request that is not answered.
const eventTimeout = 30 * time.Second

// Create implements record.EventSink.
func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	made, err := s.do(s.client.Post().Body(e), e.Namespace)
	if isStatus(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		s.refused(err)
	}
	return made, err
}

// Update implements record.EventSink.
func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Put().Name(e.Name).Body(e), e.Namespace)
}

// Patch implements record.EventSink.
func (s eventSink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.do(s.client.Patch(types.StrategicMergePatchType).Name(e.Name).Body(patch), e.Namespace)
}

func (s eventSink) do(r *rest.Request, namespace string) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(s.ctx, eventTimeout)
	defer cancel()
	made := &corev1.Event{}
	return made, r.Resource("events").Namespace(namespace).Do(ctx).Into(made)
}
