package faults

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

var updates = flag.Int("updates", 10, "with -full, how often all pods of a Deployment are replaced in each mode")

// rollingUpdate has all pods of a Deployment replaced, again and again, as its
// controller and the kubelet do it, while connections are made all the time: none
// fails.
func (c cluster) rollingUpdate(t *testing.T) {
	d := newDeployment(t, c, size(3, 50))
	const perSecond = 500
	tr := traffic.StartNew(t, perSecond, d.sources...)
	for i := range size(1, *updates) {
		began := time.Now()
		d.update(t, tr)
		t.Logf("update %d of %d pods took %s", i+1, len(d.pods), time.Since(began).Round(time.Millisecond))
	}
	tr.GoOn(t)
	tr.End(t)
}

// deployment is the pods of the cluster's Service.
type deployment struct {
	cluster
	pods    []*lab.Pod // of the latest version that are ready, oldest first
	leaving []*lab.Pod // are terminating
	made    int
}

func newDeployment(t *testing.T, c cluster, replicas int) *deployment {
	t.Helper()
	d := &deployment{cluster: c, pods: c.Web}
	if len(d.pods) >= replicas {
		return d
	}
	for len(d.pods) < replicas {
		d.pods = append(d.pods, d.pod(t))
	}
	d.publish(t)
	return d
}

func (d *deployment) pod(t *testing.T) *lab.Pod {
	t.Helper()
	d.made++
	return labtest.AddPod(t, d.Lab, d.Nodes[d.made%len(d.Nodes)], fmt.Sprintf("app-%d", d.made))
}

// publish says what the EndpointSlice controller does, and waits until all proxies have
// done it: pods that are about to go still serve, and are not ready.
func (d *deployment) publish(t *testing.T) {
	t.Helper()
	objects := lab.Slices(d.Service, slices.Concat(d.pods, d.leaving)...)
	yes, no := true, false
	for _, o := range objects {
		slice := o.(*discoveryv1.EndpointSlice)
		for i := len(d.pods); i < len(slice.Endpoints); i++ {
			slice.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		}
	}
	heard := map[*lab.Node]int{}
	for _, n := range d.Nodes {
		heard[n] = metric(t, n, proxyMetrics, changesOfSlices)
	}
	if err := d.Apply(objects...); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Nodes {
		eventually(t, func() error {
			new, pending := metric(t, n, proxyMetrics, changesOfSlices)-heard[n], metric(t, n, proxyMetrics, pendingSlices)
			if new < len(objects) || pending > 0 {
				return fmt.Errorf("%s has heard of %d changes, %d are pending", n.Name, new, pending)
			}
			return nil
		})
	}
}

const (
	changesOfSlices = "kubeproxy_sync_proxy_rules_endpoint_changes_total"
	pendingSlices   = "kubeproxy_sync_proxy_rules_endpoint_changes_pending"
)

// update replaces every pod by a new one. Those that go end when everybody has been
// answered who asked before: this is what a hook before the end is for.
func (d *deployment) update(t *testing.T, tr *traffic.Traffic) {
	t.Helper()
	for left := len(d.pods); left > 0; {
		n := min(left, max(1, len(d.pods)/4)) // maxSurge
		for range n {
			d.pods = append(d.pods, d.pod(t))
		}
		d.publish(t)
		d.leaving, d.pods = d.pods[:n], d.pods[n:]
		d.publish(t)
		tr.GoOn(t)
		gone := d.leaving
		d.leaving = nil
		for _, p := range gone {
			if err := d.RemovePod(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		d.publish(t)
		left -= n
	}
}
