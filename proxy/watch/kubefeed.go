package watch

import (
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// feed is which objects of a kind are wanted, and how they are converted.
type feed struct {
	kind     string
	group    schema.GroupVersion
	resource string
	fields   fields.Selector
	example  runtime.Object
	convert  func(any) (any, field.ErrorList)
	optional bool // the source goes without it where the API server refuses it
}

// proxyFeeds are those of a proxy. Together with unusedBy they ask for the objects
// that kube-proxy asks for.
func proxyFeeds(nodeName string) []feed {
	return []feed{{
		kind:     kindService,
		group:    corev1.SchemeGroupVersion,
		resource: "services",
		fields:   fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone),
		example:  &corev1.Service{},
		convert:  converts(convertService),
	}, {
		kind:     kindSlice,
		group:    discovery.SchemeGroupVersion,
		resource: "endpointslices",
		fields:   fields.Everything(),
		example:  &discovery.EndpointSlice{},
		convert:  converts(convertSlice),
	}, nodeFeed(fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName))}
}

func nodeFeed(which fields.Selector) feed {
	return feed{
		kind:     kindNode,
		group:    corev1.SchemeGroupVersion,
		resource: "nodes",
		fields:   which,
		example:  &corev1.Node{},
		convert:  converts(convertNode),
	}
}

// listWatch gets the feed's objects.
func (f feed) listWatch(client rest.Interface) *cache.ListWatch {
	labels := ""
	if label := unusedBy[f.kind]; label != "" {
		labels = "!" + label
	}
	return cache.NewFilteredListWatchFromClient(client, f.resource, metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.LabelSelector, o.FieldSelector = labels, f.fields.String()
	})
}

// newClient is a client for a group of the API. It knows the types that are used
// only: a scheme of all the API's types costs megabytes.
func newClient(config *rest.Config, group schema.GroupVersion) (rest.Interface, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = "/apis", &group
	if group.Group == corev1.GroupName {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return rest.RESTClientFor(c)
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discovery.AddToScheme, networking.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return scheme, nil
}

// backoff is between two attempts to reach an API server. It ends at 10 to 20 s,
// client-go's own at 30 to 60 s: for so long, after an outage, would a node go on
// with what was before.
// What an API server may not have at all it is asked for less often.
func (f feed) backoff() *wait.Backoff {
	longest := 10 * time.Second
	if f.optional {
		longest = 5 * time.Minute
	}
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 12, Cap: longest}
}

// newReflector keeps the records of a feed's kind as the API server has them.
func (k *Kube) newReflector(f feed, config *rest.Config) (*cache.Reflector, error) {
	client, err := newClient(k.overheard(f.kind, config), f.group)
	if err != nil {
		return nil, err
	}
	quiet := logr.Discard() // what client-go would log, Stale says
	return cache.NewReflectorWithOptions(k.heeded(f, f.listWatch(client)), f.example, kubeStore{k, f}, cache.ReflectorOptions{
		Logger:          &quiet,
		Name:            f.kind,
		TypeDescription: f.kind,
		Backoff:         f.backoff(),
	}), nil
}

// run runs a reflector until the source is closed.
func (k *Kube) run(r *cache.Reflector) {
	k.running.Go(func() { r.RunWithContext(klog.NewContext(k.ctx, logr.Discard())) })
}
