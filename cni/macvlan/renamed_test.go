package macvlan

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/e2e/netns"
)

// TestAddRenamed goes the way of kernels before 6.15, on which a macvlan cannot
// be made with a name that the namespace of its master has too.
func TestAddRenamed(t *testing.T) {
	tests := map[string]struct {
		prepare func(pod *netns.NS)
		want    string // part of the error
		left    int    // interfaces of the pod, with lo
	}{
		"the name is free": {prepare: func(*netns.NS) {}, left: 2},
		"the name is taken": {
			prepare: func(pod *netns.NS) { pod.RunT(t, "ip", "link", "add", "eth0", "type", "bridge") },
			want:    "to eth0: file exists", left: 2,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, pod := netns.NewT(t), netns.NewT(t)
			host.RunT(t, "ip", "link", "add", "eth0", "type", "bridge")
			tt.prepare(pod)
			a := Attachment{
				Attachment: &mode.Attachment{IfName: "eth0", Host: open(t, host), Pod: open(t, pod)},
				Config:     &Config{},
			}
			master, err := a.Host.Device("eth0")
			if err != nil {
				t.Fatal(err)
			}
			undo, err := a.addRenamed(link.Macvlan{MAC: link.NewMAC(), Master: master, Mode: "bridge", NS: a.Pod})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if links := strings.Count(pod.RunT(t, "ip", "-oneline", "link"), "\n"); links != tt.left {
				t.Errorf("%d interfaces, want %d", links, tt.left)
			}
			if undo == nil {
				return
			}
			device, err := a.Pod.Device("eth0")
			if err != nil || device.Kind != Kind {
				t.Errorf("eth0 is a %s, error %v", device.Kind, err)
			}
			if err := undo(); err != nil {
				t.Error(err)
			}
			if links := strings.Count(pod.RunT(t, "ip", "-oneline", "link"), "\n"); links != 1 {
				t.Errorf("%d interfaces after undo", links)
			}
		})
	}
}

func open(t *testing.T, made *netns.NS) *link.NS {
	t.Helper()
	ns, err := link.Open(made.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}
