package watch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/proxy/service"
)

// eventServer is as much of an API server as Events need. It passes on what it is
// asked to write, in words. (With a real one they are tested in e2e/kube.)
type eventServer struct {
	*httptest.Server
	t     *testing.T
	wrote chan string
}

func newEventServer(t *testing.T) *eventServer {
	s := &eventServer{t: t, wrote: make(chan string, 10)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *eventServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "forbidden") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden, Message: "events is forbidden"})
		return
	}
	var e corev1.Event
	if err := s.decode(r, &e); err != nil {
		s.t.Error(err)
	}
	o := e.InvolvedObject
	path, _, _ := strings.Cut(r.URL.Path, "/events/") // without the name, of which a part is a time
	s.wrote <- fmt.Sprintf("%s %s: %s %s %s/%s %s by %s on %s: %s %s: %s x%d", r.Method, path,
		o.APIVersion, o.Kind, o.Namespace, o.Name, o.UID, e.Source.Component, e.Source.Host, e.Type, e.Reason, e.Message, e.Count)
	e.TypeMeta = metav1.TypeMeta{Kind: "Event", APIVersion: "v1"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(e); err != nil {
		s.t.Error(err)
	}
}

// decode reads an Event, or a part of one in JSON.
func (s *eventServer) decode(r *http.Request, into *corev1.Event) error {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method == http.MethodPatch {
		return errors.Join(err, json.Unmarshal(body, into))
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	_, _, err = serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(body, nil, into)
	return err
}

// events are those of a source that knows some objects.
func (s *eventServer) events(refused func(error)) *Events {
	p := newPuppet()
	p.ctx, p.config, p.node = s.t.Context(), &rest.Config{Host: s.URL}, "node-1"
	known := web(80)
	known.UID = "1234"
	p.list(s.t, known)
	e, err := p.NewEvents("fairlead-proxy", refused)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// An Event names its object as kubectl looks for it, and is counted when it comes
// again.
func TestEvents(t *testing.T) {
	server := newEventServer(t)
	events := server.events(func(err error) { t.Errorf("refused: %v", err) })
	web := Object{Kind: kindService, Name: service.Name{Namespace: "default", Name: "web"}}
	slice := Object{Kind: kindSlice, Name: service.Name{Namespace: "shop", Name: "web-1"}}
	node := Object{Kind: kindNode, Name: service.Name{Name: "node-2"}}
	for range 2 {
		events.Warn(web, "InvalidService", "no good")
	}
	events.Warn(slice, "InvalidEndpointSlice", "no good either")
	events.WarnUID(Object{Kind: kindIPPool, Name: service.Name{Name: "lan"}}, "5678", "Unusable", "it overlaps")
	events.Warn(node, "PodCIDROverlaps", "its pod CIDR is taken")
	want := []string{
		"POST /api/v1/namespaces/default/events: v1 Service default/web 1234 by fairlead-proxy on node-1: Warning InvalidService: no good x1",
		"PATCH /api/v1/namespaces/default:   /  by  on :  : no good x2",
		"POST /api/v1/namespaces/shop/events: discovery.k8s.io/v1 EndpointSlice shop/web-1  by fairlead-proxy on node-1: Warning InvalidEndpointSlice: no good either x1",
		"POST /api/v1/namespaces/default/events: fairlead.dev/v1alpha1 IPPool /lan 5678 by fairlead-proxy on node-1: Warning Unusable: it overlaps x1",
		"POST /api/v1/namespaces/default/events: v1 Node /node-2 node-2 by fairlead-proxy on node-1: Warning PodCIDROverlaps: its pod CIDR is taken x1",
	}
	var got []string
	for range want {
		got = append(got, <-server.wrote)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

// What the API server refuses is told.
func TestEventsRefused(t *testing.T) {
	refused := make(chan error, 1)
	events := newEventServer(t).events(func(err error) { refused <- err })
	events.Warn(Object{Kind: kindService, Name: service.Name{Namespace: "forbidden", Name: "web"}}, "InvalidService", "no good")
	if err := <-refused; err.Error() != "events is forbidden" {
		t.Errorf("refused: %v", err)
	}
}
