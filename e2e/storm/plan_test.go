package storm

import (
	"math/rand/v2"
	"sync"
)

// slots is how many pods a worker has at most.
const slots = 4

// order is what a worker does next: an ADD if the slot is empty, a DEL if it is
// not. A worker's orders follow from the seed alone, and so does which slot is
// empty when: whether a killed call came to its end does not matter to it.
type order struct {
	slot int
	kill bool
	// instant is when, as a part of what such a call takes when it is let live: 0
	// is right after the start, and near 1 is too late for a quick one.
	instant float64
	// forget has the runtime die with the call: it does not know of the pod any
	// more, and no DEL will follow.
	forget bool
}

// draw has nine of twenty calls killed, for a third to die before their end.
func draw(random *rand.Rand) order {
	o := order{slot: random.IntN(slots), kill: random.IntN(20) < 9, instant: random.Float64(), forget: random.IntN(2) == 0}
	if random.IntN(8) == 0 {
		o.instant = 0
	}
	return o
}

// storm is one round. It returns when the last call has ended.
func (n *node) storm(round int) {
	var all sync.WaitGroup
	for worker := range workers {
		random := rand.New(rand.NewPCG(*seed, uint64(round*workers+worker)))
		all.Go(func() {
			var pods [slots]*pod
			for range *calls / rounds() / workers {
				o := draw(random)
				pods[o.slot] = n.follow(o, pods[o.slot])
			}
		})
	}
	all.Wait()
}

// follow makes one call and returns what is in the slot afterwards.
func (n *node) follow(o order, p *pod) *pod {
	if p == nil {
		p = n.newPod()
		n.add(p, o)
		if o.kill && o.forget {
			return nil
		}
		return p
	}
	n.del(p, o)
	if o.kill && !o.forget {
		return p // the runtime tries again
	}
	return nil
}
