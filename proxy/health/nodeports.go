package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// NodePorts answers load balancers that ask whether this node has endpoints of a
// Service (spec.healthCheckNodePort): 200 if it has and the proxy works, else 503.
// That the node is about to go is for /healthz to say: until then its endpoints
// should be used.
type NodePorts struct {
	works func() bool

	mu      sync.Mutex
	checks  map[service.Name]service.HealthCheck // as of the last Sync
	servers map[service.Name]*http.Server        // those that listen, at the port of their Addr
}

// NewNodePorts returns a NodePorts that listens nowhere yet. works is whether the
// proxy does.
func NewNodePorts(works func() bool) *NodePorts {
	return &NodePorts{works: works, servers: map[service.Name]*http.Server{}}
}

// Sync makes the checks those that are answered. A port that cannot be had is
// tried again by the next Sync; the others are served all the same. The sockets
// are made in the network namespace of the calling thread.
func (n *NodePorts) Sync(ctx context.Context, checks map[service.Name]service.HealthCheck) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.checks = make(map[service.Name]service.HealthCheck, len(checks))
	for name, check := range checks {
		n.checks[name] = check
	}
	for name, server := range n.servers {
		if check, ok := checks[name]; !ok || server.Addr != addr(check.Port) {
			_ = server.Close()
			delete(n.servers, name)
		}
	}
	var errs []error
	for name, check := range checks {
		if n.servers[name] == nil {
			errs = append(errs, n.listen(ctx, name, check.Port))
		}
	}
	return errors.Join(errs...)
}

// Close stops listening.
func (n *NodePorts) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, server := range n.servers {
		_ = server.Close()
		delete(n.servers, name)
	}
}

func addr(port uint16) string { return ":" + strconv.Itoa(int(port)) }

func (n *NodePorts) listen(ctx context.Context, name service.Name, port uint16) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr(port))
	if err != nil {
		return fmt.Errorf("serve health check of %s: %w", name, err)
	}
	server := &http.Server{
		Addr:              addr(port),
		Handler:           n.handler(name),
		ReadHeaderTimeout: 5 * time.Second,
	}
	n.servers[name] = server
	go func() { _ = server.Serve(l) }() // until Close
	return nil
}

// handler answers for one Service, in kube-proxy's JSON and headers. The weight
// lets a load balancer give a node with more endpoints more flows.
func (n *NodePorts) handler(name service.Name) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		local := n.checks[name].Local
		n.mu.Unlock()
		works := n.works()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
		if local == 0 || !works {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		type object struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		}
		// A client that is gone does not hear the answer.
		_ = json.NewEncoder(w).Encode(struct {
			Service             object `json:"service"`
			LocalEndpoints      int    `json:"localEndpoints"`
			ServiceProxyHealthy bool   `json:"serviceProxyHealthy"`
		}{object{name.Namespace, name.Name}, local, works})
	})
}
