// Package apiserver serves a cluster that it holds in memory as the API of
// Kubernetes does, as far as a service proxy asks: lists and watches of Services,
// EndpointSlices and Nodes, in JSON and in protobuf. Every proxy that is compared
// learns of the same objects in the same way, at the cost of a real client.
//
// There is no storage, no admission and no authorization, and nobody can write
// but by Set. Selectors are taken and not applied: the cluster has only objects
// that proxies select. An answer is made once for each version of the cluster, so
// that the server takes as little as can be from the proxy beside it.
package apiserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// Object is of one of the served kinds, with kind and apiVersion set.
type Object interface {
	metav1.Object
	runtime.Object
}

// Server is the API of one cluster.
type Server struct {
	http     *http.Server
	listener net.Listener
	codecs   serializer.CodecFactory

	mu        sync.Mutex            // guards what follows
	version   int64                 // of the cluster, the resourceVersion of the last change
	resources map[string]*resource  // as in URLs → objects
	watchers  map[*watcher]struct{} // of all resources
}

// resource is the objects of one kind.
type resource struct {
	objects map[string]Object // namespace/name → object
	changed int64             // the version of the last change
	lists   map[string][]byte // media type → the encoded list of now
}

// watcher is one client's watch.
type watcher struct {
	resource string
	events   chan event
}

type event struct {
	kind   string // ADDED, MODIFIED, DELETED
	object Object
}

// New serves an empty cluster at a listener, until Close.
func New(l net.Listener) (*Server, error) {
	codecs, err := newCodecs()
	if err != nil {
		return nil, fmt.Errorf("prepare to encode objects: %w", err)
	}
	s := &Server{
		listener: l, codecs: codecs, version: 1, resources: map[string]*resource{}, watchers: map[*watcher]struct{}{},
	}
	for name := range paths {
		s.resources[name] = &resource{objects: map[string]Object{}}
	}
	mux := http.NewServeMux()
	for name, path := range paths {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { s.get(w, r, name) })
	}
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(l) }()
	return s, nil
}

// URL is where the server is.
func (s *Server) URL() string { return "http://" + s.listener.Addr().String() }

// Close ends all requests.
func (s *Server) Close() error {
	err := s.http.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Set makes objects exist as given and tells watchers. The objects belong to the
// server then.
func (s *Server) Set(objects ...Object) {
	s.change(objects, func(r *resource, key string, o Object) string {
		_, known := r.objects[key]
		r.objects[key] = o
		if known {
			return "MODIFIED"
		}
		return "ADDED"
	})
}

// Delete makes objects not exist and tells watchers.
func (s *Server) Delete(objects ...Object) {
	s.change(objects, func(r *resource, key string, _ Object) string {
		delete(r.objects, key)
		return "DELETED"
	})
}

func (s *Server) change(objects []Object, apply func(r *resource, key string, o Object) (kind string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		name := resourceOf(o)
		s.version++
		o.SetResourceVersion(strconv.FormatInt(s.version, 10))
		r := s.resources[name]
		r.lists, r.changed = nil, s.version
		kind := apply(r, o.GetNamespace()+"/"+o.GetName(), o)
		for w := range s.watchers {
			if w.resource == name {
				s.tell(w, event{kind, o})
			}
		}
	}
}

// tell gives up a watcher that does not read: its client lists and watches anew.
func (s *Server) tell(w *watcher, e event) {
	select {
	case w.events <- e:
	default:
		delete(s.watchers, w)
		close(w.events)
	}
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, name string) {
	codec, ok := s.negotiate(r.Header.Get("Accept"))
	if !ok {
		http.Error(w, fmt.Sprintf("accept %q: served are JSON and protobuf", r.Header.Get("Accept")), http.StatusNotAcceptable)
		return
	}
	query := r.URL.Query()
	var err error
	if watch := query.Get("watch"); watch == "true" || watch == "1" {
		err = s.watch(w, r, name, codec)
	} else {
		err = s.list(w, name, codec)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (s *Server) list(w http.ResponseWriter, name string, c codec) error {
	body, err := s.encodedList(name, c)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", c.mediaType)
	_, err = w.Write(body)
	return err
}

func (s *Server) encodedList(name string, c codec) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.resources[name]
	if body, ok := r.lists[c.mediaType]; ok {
		return body, nil
	}
	body, err := c.encodeList(name, r.objects, s.version)
	if err != nil {
		return nil, err
	}
	if r.lists == nil {
		r.lists = map[string][]byte{}
	}
	r.lists[c.mediaType] = body
	return body, nil
}

// watch tells of changes until the client goes. A client may ask for what there
// is to be told first (sendInitialEvents, KEP-3157). What changed between its list
// and its watch is told too: there is no history, so that a client whose version
// is not the last one is told to list again.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, name string, c codec) error {
	query := r.URL.Query()
	initial := query.Get("sendInitialEvents") == "true"
	s.mu.Lock()
	current := s.version
	if asked, _ := strconv.ParseInt(query.Get("resourceVersion"), 10, 64); !initial && asked != 0 && s.resources[name].changed > asked {
		s.mu.Unlock()
		w.WriteHeader(http.StatusGone)
		return nil
	}
	var first []Object
	if initial {
		for _, o := range s.resources[name].objects {
			first = append(first, o)
		}
	}
	watcher := &watcher{resource: name, events: make(chan event, 1<<16)}
	s.watchers[watcher] = struct{}{}
	s.mu.Unlock()
	defer s.forget(watcher)

	w.Header().Set("Content-Type", c.streamType())
	out := c.newStream(w)
	for _, o := range first {
		if err := out.send(event{"ADDED", o}); err != nil {
			return nil // the client is gone
		}
	}
	if initial {
		if err := out.send(event{"BOOKMARK", bookmark(name, current)}); err != nil {
			return nil
		}
	}
	return out.follow(r.Context(), watcher.events)
}

func (s *Server) forget(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, w)
}
