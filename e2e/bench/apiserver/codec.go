package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// paths is resource → where it is served.
var paths = map[string]string{
	"services":       "/api/v1/services",
	"nodes":          "/api/v1/nodes",
	"endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
}

func resourceOf(o Object) string {
	switch o.(type) {
	case *corev1.Service:
		return "services"
	case *corev1.Node:
		return "nodes"
	case *discovery.EndpointSlice:
		return "endpointslices"
	}
	panic(fmt.Sprintf("no proxy asks for a %T", o))
}

func newList(name string) runtime.Object {
	switch name {
	case "services":
		return &corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}}
	case "nodes":
		return &corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
	}
	return &discovery.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
}

// bookmark says that all objects of a version have been told.
func bookmark(name string, version int64) Object {
	about := metav1.ObjectMeta{
		ResourceVersion: strconv.FormatInt(version, 10),
		Annotations:     map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}
	switch name {
	case "services":
		return &corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}, ObjectMeta: about}
	case "nodes":
		return &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: about}
	}
	return &discovery.EndpointSlice{TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"}, ObjectMeta: about}
}

// newCodecs are of the kinds that are served.
func newCodecs() (serializer.CodecFactory, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discovery.AddToScheme} {
		if err := add(scheme); err != nil {
			return serializer.CodecFactory{}, err
		}
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	return serializer.NewCodecFactory(scheme), nil
}

// codec is one media type.
type codec struct {
	mediaType string
	info      runtime.SerializerInfo
}

// negotiate takes the first media type of an Accept header that is served.
func (s *Server) negotiate(accept string) (codec, bool) {
	for part := range strings.SplitSeq(accept, ",") {
		wanted, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.Contains(part, "as=") {
			continue // a Table, or metadata alone
		}
		if wanted == "*/*" || wanted == "" {
			wanted = runtime.ContentTypeJSON
		}
		info, ok := runtime.SerializerInfoForMediaType(s.codecs.SupportedMediaTypes(), wanted)
		if ok && info.StreamSerializer != nil {
			return codec{wanted, info}, true
		}
	}
	return codec{}, false
}

func (c codec) encodeList(name string, objects map[string]Object, version int64) ([]byte, error) {
	list := newList(name)
	items := make([]runtime.Object, 0, len(objects))
	for _, o := range objects {
		items = append(items, o)
	}
	if err := meta.SetList(list, items); err != nil {
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	about, err := meta.ListAccessor(list)
	if err != nil {
		return nil, err
	}
	about.SetResourceVersion(strconv.FormatInt(version, 10))
	var body bytes.Buffer
	if err := c.info.Serializer.Encode(list, &body); err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	return body.Bytes(), nil
}

// streamType is the media type of a watch.
func (c codec) streamType() string {
	if c.mediaType == runtime.ContentTypeJSON {
		return c.mediaType
	}
	return c.mediaType + ";stream=watch"
}

// stream is the answer to a watch.
type stream struct {
	codec
	frames io.Writer
	flush  func()
}

func (c codec) newStream(w http.ResponseWriter) *stream {
	s := &stream{codec: c, frames: c.info.StreamSerializer.NewFrameWriter(w), flush: func() {}}
	if f, ok := w.(http.Flusher); ok {
		s.flush = f.Flush
	}
	return s
}

func (s *stream) send(e event) error {
	var object, frame bytes.Buffer
	if err := s.info.Serializer.Encode(e.object, &object); err != nil {
		return fmt.Errorf("encode %s: %w", e.object.GetName(), err)
	}
	watch := &metav1.WatchEvent{Type: e.kind, Object: runtime.RawExtension{Raw: object.Bytes()}}
	if err := s.info.StreamSerializer.Encode(watch, &frame); err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	_, err := s.frames.Write(frame.Bytes())
	return err
}

// follow tells of events until the client goes or is given up.
func (s *stream) follow(ctx context.Context, events <-chan event) error {
	for {
		s.flush()
		select {
		case <-ctx.Done():
			return nil
		case e, open := <-events:
			if !open {
				return nil
			}
			if err := s.send(e); err != nil {
				return nil // the client is gone
			}
		}
	}
}
