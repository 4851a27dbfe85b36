package apiserver

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/e2e/lab"
)

func start(t *testing.T) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func service(n int) *corev1.Service {
	return lab.NewService(fmt.Sprintf("s-%d", n), fmt.Sprintf("10.96.0.%d", n), fmt.Sprintf("fd00:10:96::%d", n))
}

// What a real client makes of it: everything that there is, then every change,
// whichever way it asks and in both encodings.
func TestFollowedByAClient(t *testing.T) {
	for _, mediaType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(mediaType, func(t *testing.T) {
			s := start(t)
			s.Set(service(1), service(2))
			client, err := rest.RESTClientFor(&rest.Config{Host: s.URL(), APIPath: "/api", ContentConfig: rest.ContentConfig{
				ContentType: mediaType, AcceptContentTypes: mediaType,
				GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: s.codecs.WithoutConversion(),
			}})
			if err != nil {
				t.Fatal(err)
			}
			follow(t, s, client)
		})
	}
}

func follow(t *testing.T, s *Server, client rest.Interface) {
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	watch := cache.NewListWatchFromClient(client, "services", metav1.NamespaceAll, fields.Everything())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		cache.NewReflector(watch, &corev1.Service{}, store, 0).RunWithContext(ctx)
	}()
	defer func() { cancel(); <-done }()

	until(t, func() bool { return len(store.ListKeys()) == 2 })
	changed := service(2)
	changed.Labels = map[string]string{"is": "changed"}
	s.Set(changed, service(3))
	s.Delete(service(1))
	until(t, func() bool {
		o, ok, _ := store.GetByKey("default/s-2")
		return len(store.ListKeys()) == 2 && ok && o.(*corev1.Service).Labels["is"] == "changed"
	})
}

func until(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client does not get that far")
		}
	}
}
