package kube_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/netns"
)

var serverAddr = netip.MustParseAddr("192.0.2.1")

func startServer(t *testing.T) (*kube.Server, *netns.NS) {
	t.Helper()
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	ns.RunT(t, "ip", "address", "add", serverAddr.String()+"/32", "dev", "lo")
	s, err := kube.Start(t.Context(), ns, serverAddr, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s, ns
}

// What was written before a SIGKILL is there after it, and what etcd has
// forgotten is gone.
func TestServerKilledAndCompacted(t *testing.T) {
	s, _ := startServer(t)
	first, second := createService(t, s, "first"), createService(t, s, "second")
	for _, step := range []func() error{s.Kill, func() error { return s.Restart(t.Context()) }, func() error { return s.Compact(t.Context()) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	found, err := s.Client.CoreV1().Services("default").Get(t.Context(), "second", metav1.GetOptions{})
	if err != nil || found.UID != second.UID {
		t.Errorf("got %v, %v", found, err)
	}
	wantForgotten(t, s, first.ResourceVersion)
}

func createService(t *testing.T, s *kube.Server, name string) *corev1.Service {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	made, err := s.Client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// wantForgotten checks that a watch from a version of the past on is refused.
func wantForgotten(t *testing.T, s *kube.Server, version string) {
	t.Helper()
	w, err := s.Client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
	if err == nil {
		defer w.Stop()
		err = apierrors.FromObject((<-w.ResultChan()).Object)
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Fatalf("watch from version %s: %v, want that it is gone", version, err)
	}
}

func TestRelay(t *testing.T) {
	s, ns := startServer(t)
	const port = 7443
	relay, err := s.NewRelay(port)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Shut()
	dial := func() (conn net.Conn, err error) {
		err = ns.Do(func() (err error) {
			conn, err = net.Dial("tcp", netip.AddrPortFrom(serverAddr, port).String())
			return err
		})
		return conn, err
	}
	wantCut := func(by func()) {
		t.Helper()
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// An answer says that the connection has reached the API server.
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		by()
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	}
	wantCut(relay.Cut)
	wantCut(relay.Shut)
	if _, err := dial(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a relay that is shut: %v", err)
	}
	if err := relay.Open(); err != nil {
		t.Fatal(err)
	}
	wantCut(relay.Cut)
}
