package watch

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Kube is a source that watches an API server: for a proxy the Services and
// EndpointSlices of the cluster and the Node object of one node, or all Nodes.
//
//	API server ──reflector (one a kind)──▶ kubeStore ──convert──▶ records ──Next──▶ News
//
// An object is converted when it arrives and not kept. What was told before
// stays as long as the API server is away, however long that is; once it is back
// the difference is told. Stale says whether it is away.
//
// The first News waits until all objects of all kinds are there, or, if there is
// something that it remembers (Remember), for five seconds. A change after a time
// of quiet is told at once; those that follow closely are told together.
//
// Next is for one goroutine at a time, Stale for any.
type Kube struct {
	config  *rest.Config
	feeds   []feed
	node    string          // name of the Node object
	ctx     context.Context // ends with the source
	stop    context.CancelFunc
	running sync.WaitGroup // reflectors
	wake    chan struct{}  // holds a token after something has changed
	told    time.Time      // when Next last had News; only Next uses it
	began   time.Time

	mu       sync.Mutex // guards what follows
	records  map[Object]*record
	changed  map[Object]bool     // those that may differ from what was told
	from, to time.Time           // the first and the last change of these
	contacts map[string]*contact // of the kinds that are watched
	memory   *memory             // nil: nothing is kept
}

// News follows when nothing has happened for burstGap, and burstMax after the
// first change at the latest. A change that comes burstMax after the last News,
// or later, begins no burst that is known of: it is told at once.
const (
	burstGap = 5 * time.Millisecond
	burstMax = 50 * time.Millisecond
)

// record is what an object is, and what was told of it.
type record struct {
	now, told finding
}

// finding is what was made of an object; zero if there is none.
type finding struct {
	uid      types.UID
	value    any // *service.Service, *service.Slice, *service.Node or *ServiceCIDR; nil if it is left out
	problems []Problem
}

// NewKube starts to watch what a proxy needs at the API server of a configuration,
// which need not be there yet. The Node object is that of the node called nodeName.
func NewKube(config *rest.Config, nodeName string) (*Kube, error) {
	return newKube(proxyFeeds(nodeName)).start(config, nodeName)
}

// NewKubeNodes starts to watch the Nodes of the cluster, all of them, and its
// ServiceCIDRs. nodeName is where the program runs, for its Events.
func NewKubeNodes(config *rest.Config, nodeName string) (*Kube, error) {
	return newKube([]feed{nodeFeed(fields.Everything()), serviceCIDRFeed()}).start(config, nodeName)
}

// newKube is a Kube that watches nothing yet.
func newKube(feeds []feed) *Kube {
	k := &Kube{
		feeds:    feeds,
		wake:     make(chan struct{}, 1),
		began:    time.Now(),
		records:  map[Object]*record{},
		changed:  map[Object]bool{},
		contacts: map[string]*contact{},
	}
	for _, f := range feeds {
		k.contacts[f.kind] = &contact{}
	}
	return k
}

// start starts the reflectors, one a feed.
func (k *Kube) start(config *rest.Config, nodeName string) (*Kube, error) {
	k.config, k.node = config, nodeName
	var reflectors []*cache.Reflector
	for _, f := range k.feeds {
		r, err := k.newReflector(f, config)
		if err != nil {
			return nil, err
		}
		reflectors = append(reflectors, r)
	}
	k.ctx, k.stop = context.WithCancel(context.Background())
	for _, r := range reflectors {
		k.run(r)
	}
	return k, nil
}

// Close ends the source.
func (k *Kube) Close() error {
	k.stop()
	k.running.Wait()
	return nil
}

// Next waits until the objects or the problems differ from what was told before,
// and returns the difference.
func (k *Kube) Next(ctx context.Context) (News, error) {
	for {
		if err := ctx.Err(); err != nil {
			return News{}, err
		}
		var due <-chan time.Time // never, if there is nothing to tell
		if wait, ok := k.due(); ok {
			if wait <= 0 {
				if news, ok := k.news(); ok {
					return news, nil
				}
				continue
			}
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-k.wake:
		case <-due:
		}
	}
}

// due says in how long there is something to tell, if there is.
func (k *Kube) due() (wait time.Duration, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.told.IsZero() && k.allListed():
		return 0, true
	case k.told.IsZero() && k.remembers():
		return time.Until(k.began.Add(memoryPatience)), true
	case k.told.IsZero():
		return 0, false
	case len(k.changed) == 0:
		return 0, false
	case k.from.Sub(k.told) >= burstMax:
		return 0, true
	}
	return min(time.Until(k.to.Add(burstGap)), time.Until(k.from.Add(burstMax))), true
}

// remembers says that a file had something of this cluster.
func (k *Kube) remembers() bool { return k.memory != nil && !k.memory.saved.IsZero() }

// allListed says that all objects of all kinds have arrived once.
func (k *Kube) allListed() bool {
	for _, c := range k.contacts {
		if !c.listed {
			return false
		}
	}
	return true
}

// news takes what has changed, if anything differs from what was told.
func (k *Kube) news() (News, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	news := newNews()
	for o := range k.changed {
		r := k.records[o]
		r.tell(o, &news)
		if r.told.value == nil && r.told.problems == nil {
			delete(k.records, o)
		}
	}
	if len(k.changed) > 0 {
		news.Since = k.from
	}
	clear(k.changed)
	slices.SortFunc(news.Problems, Problem.compareObjects)
	slices.SortFunc(news.Mended, Problem.compareObjects)
	first := k.told.IsZero()
	if !first && news.empty() {
		return news, false
	}
	k.told = time.Now()
	if k.memory != nil {
		k.memory.dirty = true
	}
	return news, true
}

// tell adds to news what differs from what was told.
func (r *record) tell(o Object, news *News) {
	switch {
	case reflect.DeepEqual(r.now.value, r.told.value):
		r.now.value = r.told.value // nobody needs the other one
	case r.now.value == nil:
		news.put(o, r.told.value, true)
	default:
		news.put(o, r.now.value, false)
	}
	news.Problems = append(news.Problems, missingFrom(r.told.problems, r.now.problems)...)
	news.Mended = append(news.Mended, missingFrom(r.now.problems, r.told.problems)...)
	r.told = r.now
}

// missingFrom returns the problems of all that are not in some.
func missingFrom(some, all []Problem) []Problem {
	var out []Problem
	for _, p := range all {
		if !slices.Contains(some, p) {
			out = append(out, p)
		}
	}
	return out
}

// note takes in what an object is now.
func (k *Kube) note(o Object, f finding) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noteLocked(o, f)
}

func (k *Kube) noteLocked(o Object, f finding) {
	r := k.records[o]
	if r == nil {
		r = &record{}
		k.records[o] = r
	}
	r.now = f
	k.to = time.Now()
	if len(k.changed) == 0 {
		k.from = k.to
	}
	k.changed[o] = true
	k.awake()
}

// replace takes in all objects of a kind: those not among them are gone.
func (k *Kube) replace(kind string, all []arrival) {
	k.mu.Lock()
	defer k.mu.Unlock()
	present := make(map[Object]bool, len(all))
	for _, a := range all {
		present[a.Object] = true
		k.noteLocked(a.Object, a.finding)
	}
	for o := range k.records {
		if o.Kind == kind && !present[o] {
			k.noteLocked(o, finding{})
		}
	}
	k.contacts[kind].listed = true
	k.awake()
}

func (k *Kube) awake() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}
