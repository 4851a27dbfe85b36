// Package kube runs a real Kubernetes API server, on etcd, inside a network
// namespace, for tests of what a cluster does to the programs of Fairlead:
//
//	namespace   etcd 127.0.0.1:2379 ◀── kube-apiserver ADDR:6443 ◀── Relay ADDR:PORT ◀── fairlead
//	                                             ▲
//	test                                       Client
//
// There are no controllers: what these would make, EndpointSlices above all,
// tests make. It is a module of its own, because of what it requires; the
// programs of Kubernetes come from yet another, kubernetes, so that nothing that
// tests require changes what they are built from.
package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/e2e/netns"
)

// serverPort is where kube-apiserver listens.
const serverPort = 6443

// Server is an API server with its etcd.
type Server struct {
	// Client may do everything. It goes straight to the API server, also while
	// that is hidden from others by a Relay, and does not look at its certificate.
	Client kubernetes.Interface

	ns        *netns.NS
	addr      netip.Addr
	dir       string
	flags     []string // of kube-apiserver, besides its usual ones
	ca        *authority
	etcd      *Process
	apiserver *Process
}

// Start runs an API server inside a namespace, at an address of it, with all its
// data in an empty directory, and waits until it is ready. The flags are added to
// kube-apiserver's.
func Start(ctx context.Context, ns *netns.NS, addr netip.Addr, dir string, flags ...string) (*Server, error) {
	s := &Server{ns: ns, addr: addr, dir: dir, flags: flags}
	if err := s.writeCredentials(); err != nil {
		return nil, err
	}
	var err error
	if s.etcd, err = startEtcd(ns, dir); err != nil {
		return nil, err
	}
	if err := s.startAPIServer(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Server) startAPIServer(ctx context.Context) error {
	program, err := Program(ctx, "kube-apiserver")
	if err != nil {
		return err
	}
	s.apiserver, err = StartProcess(s.ns, filepath.Join(s.dir, "kube-apiserver.log"), exec.Command(program, append([]string{
		"--etcd-servers", etcdURL,
		"--bind-address", s.addr.String(), "--advertise-address", s.addr.String(), "--secure-port", fmt.Sprint(serverPort),
		"--tls-cert-file", s.file(certFile), "--tls-private-key-file", s.file(certKey), "--cert-dir", s.dir,
		"--token-auth-file", s.file(tokensFile),
		"--authorization-mode", "RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", s.file(keyFile), "--service-account-signing-key-file", s.file(keyFile),
		"--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112",
	}, s.flags...)...))
	if err != nil {
		return err
	}
	return s.waitReady(ctx)
}

// waitReady waits until the API server says that it is ready, and makes Client.
func (s *Server) waitReady(ctx context.Context) error {
	for {
		err := s.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for kube-apiserver: %w: %w; its log ends:\n%s", context.Cause(ctx), err, s.apiserver.Said())
		case <-s.apiserver.done:
			return fmt.Errorf("start kube-apiserver: it ended; its log ends:\n%s", s.apiserver.Said())
		case <-s.etcd.done:
			return fmt.Errorf("start etcd: it ended; its log ends:\n%s", s.etcd.Said())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) ready(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.Config())
	if err != nil {
		return err
	}
	s.Client = client
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// Config is Client's: of one who may do everything.
func (s *Server) Config() *rest.Config {
	return &rest.Config{
		Host:            s.url(serverPort),
		BearerToken:     adminToken,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		Dial:            dialIn(s.ns),
		QPS:             -1, // no limit
	}
}

// Kill ends the API server, not etcd, by SIGKILL.
func (s *Server) Kill() error { return s.apiserver.kill() }

// Restart starts the API server again after Kill and waits until it is ready.
func (s *Server) Restart(ctx context.Context) error { return s.startAPIServer(ctx) }

// Stop ends API server and etcd.
func (s *Server) Stop() error {
	var errs []error
	for _, p := range []*Process{s.apiserver, s.etcd} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	return errors.Join(errs...)
}

func (s *Server) url(port uint16) string {
	return "https://" + netip.AddrPortFrom(s.addr, port).String()
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// dialIn dials from inside a namespace.
func dialIn(ns *netns.NS) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		at, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		var conn net.Conn
		err = ns.Do(func() (err error) {
			conn, err = new(net.Dialer).DialTCP(ctx, network, netip.AddrPort{}, at)
			return err
		})
		return conn, err
	}
}
