package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// The port of a new pod has the program before ADD returns: the proxy, which stands
// still, has not heard of it. When it goes on and takes over what it finds there, nothing
// is lost.
func TestNewPort(t *testing.T) {
	for name, flags := range map[string][]string{"tcx": nil, "clsact": {"--no-tcx"}} {
		t.Run(name, func(t *testing.T) {
			c := labtest.NewCluster(t, lab.Options{Nodes: 2, Mode: "ebpf", ProxyFlags: flags, BinDir: programs.Dir(t)})
			node := c.Nodes[0]
			before, _ := labtest.Attached(t, node)
			proxy := node.ProxyProcess().PID
			if err := unix.Kill(proxy, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			pod := labtest.AddPod(t, c.Lab, node, "new")
			if after, _ := labtest.Attached(t, node); after != before+1 {
				t.Errorf("%d programs at links before ADD, %d after it", before, after)
			}
			s := stream(t, c.Client, pod, pod.IPv4())
			s.AwaitMore(t, 10)
			if err := unix.Kill(proxy, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond) // it hears of the port
			s.AwaitMore(t, 10)
			s.End(t)
			if after, _ := labtest.Attached(t, node); after != before+1 {
				t.Errorf("%d programs at links before ADD, %d when the proxy knows", before, after)
			}
		})
	}
}
