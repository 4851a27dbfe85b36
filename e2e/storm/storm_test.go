// Package storm kills the CNI plugin at random instants, many times, while it
// attaches and detaches pods on one node, and looks whether any address was
// given twice and whether anything is left behind.
//
// The plugin is the built program, run as a container runtime runs it. What the
// kernel has is asked of the kernel, the addresses of the store.
//
//	go test ./e2e/storm -seed 7 -calls 20000
//
// A seed repeats who calls what and who is killed when, but not how the kernel
// has the processes take turns.
package storm

import (
	"flag"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

var (
	seed  = flag.Uint64("seed", 0, "which plan of calls and kills to follow; 0: a new one")
	calls = flag.Int("calls", 2000, "number of ADDs and DELs")

	programs labtest.Programs
)

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }

const workers = 16

// rounds is how often it is looked: so many times that addresses of pods that were lost
// are given again, which those of more calls would use up, and that the bridge is made
// and the gateway set up under fire more than once.
func rounds() int { return max(5, *calls/400) }

// TestStorm has 16 workers call ADD and DEL, and a third of their calls
// killed. After each round the runtime calls GC with the pods that it knows, and
// DEL for those.
func TestStorm(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("to repeat: -seed %d -calls %d", *seed, *calls)
	n := newNode(t, programs.Dir(t))
	empty := n.emptyRules(t)
	for round := range rounds() {
		n.storm(round)

		n.gc(t)
		n.checkRows(t)
		n.checkPorts(t)
		n.checkPods(t)

		n.delAll()
		n.checkRows(t)
		n.checkPorts(t)
		n.checkLinks(t)
		n.compare(t, "rules", empty, n.rules(t))

		n.removeBridge(t)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	n.count.log(t)
	n.count.check(t)
}
