package cni_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

// BenchmarkAdd attaches and detaches one pod after the other by exec, through
// Fairlead and through the reference bridge with host-local in the same loop,
// each in a host namespace of its own. It reports the medians, and beside them
// what starting the program alone takes.
//
//	go test -run '^$' -bench Add -benchtime 200x ./cni
func BenchmarkAdd(b *testing.B) {
	ours := filepath.Join(fairleadCNI(b), "fairlead-cni")
	contestants := []*contestant{
		newContestant(b, "fairlead", ours, "fairlead-ipam"),
		newContestant(b, "reference", filepath.Join(refplugins.Dir(b), "bridge"), "host-local"),
	}
	var starts []time.Duration
	for i := 0; b.Loop(); i++ {
		for _, c := range contestants {
			c.addAndDel(b, fmt.Sprintf("pod-%d", i))
		}
		version := exec.Command(ours)
		version.Env = []string{"CNI_COMMAND=VERSION"}
		starts = append(starts, measure(b, version.Run))
	}
	fairlead, reference := contestants[0], contestants[1]
	b.ReportMetric(0, "ns/op")
	for _, c := range contestants {
		b.ReportMetric(median(c.adds), c.name+"-ADD-ms")
		b.ReportMetric(median(c.dels), c.name+"-DEL-ms")
	}
	b.ReportMetric(median(starts), "start-ms")
	b.ReportMetric(median(fairlead.adds)/median(reference.adds), "ADD-ratio")
	b.ReportMetric(median(fairlead.dels)/median(reference.dels), "DEL-ratio")
}

// BenchmarkFilter is what ipMasq and macspoofchk add to attaching and detaching a
// pod: the ratios are to neither.
//
//	go test -run '^$' -bench Filter -benchtime 200x ./cni
func BenchmarkFilter(b *testing.B) {
	program := filepath.Join(fairleadCNI(b), "fairlead-cni")
	contestants := make([]*contestant, 0, 3)
	for _, key := range []string{"isDefaultGateway", "ipMasq", "macspoofchk"} {
		c := newContestant(b, key, program, "fairlead-ipam")
		c.conf = c.conf.with(key, true)
		contestants = append(contestants, c)
	}
	for i := 0; b.Loop(); i++ {
		for _, c := range contestants {
			c.addAndDel(b, fmt.Sprintf("pod-%d", i))
		}
	}
	b.ReportMetric(0, "ns/op")
	neither := contestants[0]
	for _, c := range contestants[1:] {
		b.ReportMetric(median(c.adds)/median(neither.adds), c.name+"-ADD-ratio")
		b.ReportMetric(median(c.dels)/median(neither.dels), c.name+"-DEL-ratio")
	}
}

// contestant is a plugin with a node of its own.
type contestant struct {
	name       string
	node       *node
	conf       network
	adds, dels []time.Duration
}

func newContestant(b *testing.B, name, program, ipam string) *contestant {
	return &contestant{
		name: name,
		node: &node{ns: netns.NewT(b), path: refplugins.Dir(b), call: byExec(program)},
		conf: network{
			"cniVersion": "1.1.0", "name": "net", "type": filepath.Base(program), "isDefaultGateway": true,
			"ipam": network{"type": ipam, "dataDir": b.TempDir(), "subnet": "10.9.0.0/16"},
		},
	}
}

// addAndDel leaves the pod's namespace to the end of the benchmark: the kernel
// takes one away in the background, and keeps the next ADD waiting.
func (c *contestant) addAndDel(b *testing.B, id string) {
	ns := netns.NewT(b)
	p := pod{id: id, ns: ns, netns: ns.Path(), ifName: "eth0"}
	c.adds = append(c.adds, measure(b, func() error { _, err := c.node.add(p, c.conf); return err }))
	c.dels = append(c.dels, measure(b, func() error { return c.node.del(p, c.conf) }))
}

func measure(b *testing.B, f func() error) time.Duration {
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// median is in milliseconds.
func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2].Microseconds()) / 1000
}
