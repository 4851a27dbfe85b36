package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Config is what the operator says of the node and the cluster.
type Config struct {
	// NodeName is the name of the Node object of the node that the Table is for.
	NodeName string
	// Pods is by what packets of pods are known.
	Pods PodsBy
	// ClusterCIDRs are the ranges of all pods of the cluster, for ByClusterCIDR.
	ClusterCIDRs []netip.Prefix
	// PodInterfaces are as in Table, for ByInterface.
	PodInterfaces []string
	// NodePortCIDRs are which of the node's addresses node ports are on. With
	// NodePortPrimary, or if there are none, so is the first address of each family
	// of its Node object.
	NodePortCIDRs   []netip.Prefix
	NodePortPrimary bool
	// LocalhostNodePorts is as in Table.
	LocalhostNodePorts bool
	// MasqueradeAll: backends see an address of the node instead of the sender's
	// also where cluster IPs are concerned.
	MasqueradeAll bool
	// SourceRangesOnNodePorts: a Service's source ranges are for its node ports
	// too. To the API they are for load balancers alone.
	SourceRangesOnNodePorts bool
}

// PodsBy is by what packets of pods are known.
type PodsBy uint8

// The ways to know pods. A flow of another node's pod was already led to its
// backend over there, so it does no harm not to know those.
const (
	ByNodeCIDR    PodsBy = iota // the pod CIDRs of this node's object
	ByClusterCIDR               // Config.ClusterCIDRs; if there are none, pods are not known
	ByInterface                 // Config.PodInterfaces
)

// Resolver keeps the Table of one node up to date. The work of an update is
// that of the Services it touches, not of all that exist.
type Resolver struct {
	config   Config
	services map[Name]*Service
	slices   map[Name]map[Name]*Slice // Service → slice's name → slice
	sliceOf  map[Name]Name            // slice's name → Service under which it is in slices
	rows     map[Name]rows            // Service → what it contributes
	claims   map[Key][]claim          // destination → who wants it, the winner first
	// contested and clashing find the conflicts without a look at all that
	// exists: destinations with several claims, Services whose own ports clash.
	contested map[Key]bool
	clashing  map[Name]bool
	zone      string // of this node
	table     Table
}

// claim is a Service's wish to have a destination.
type claim struct {
	created  int64
	frontend Frontend
}

func (c claim) compare(d claim) int {
	return cmp.Or(
		cmp.Compare(c.created, d.created),
		c.frontend.Origin.Service.Compare(d.frontend.Origin.Service))
}

// NewResolver returns a Resolver that knows no object yet.
func NewResolver(config Config) *Resolver {
	return &Resolver{
		config:    config,
		services:  map[Name]*Service{},
		slices:    map[Name]map[Name]*Slice{},
		sliceOf:   map[Name]Name{},
		rows:      map[Name]rows{},
		claims:    map[Key][]claim{},
		contested: map[Key]bool{},
		clashing:  map[Name]bool{},
		table: Table{
			Frontends:          map[Key]Frontend{},
			Pools:              map[PoolID]Pool{},
			HealthChecks:       map[Name]HealthCheck{},
			PodCIDRs:           config.podCIDRs(&Node{}),
			PodInterfaces:      config.podInterfaces(),
			NodePortCIDRs:      config.NodePortCIDRs,
			LocalhostNodePorts: config.LocalhostNodePorts,
		},
	}
}

// podCIDRs are the ranges by which pods are known on a node.
func (c Config) podCIDRs(node *Node) []netip.Prefix {
	switch c.Pods {
	case ByNodeCIDR:
		return node.PodCIDRs
	case ByClusterCIDR:
		return c.ClusterCIDRs
	}
	return nil
}

func (c Config) podInterfaces() []string {
	if c.Pods == ByInterface {
		return c.PodInterfaces
	}
	return nil
}

// Table is the Table as of the last Apply. It belongs to the Resolver and
// changes with the next Apply.
func (r *Resolver) Table() *Table { return &r.table }

// Apply takes an update in and says which rows of the Table it changed.
func (r *Resolver) Apply(u Update) Change {
	dirty := map[Name]bool{}
	for name, svc := range u.Services {
		setOrDelete(r.services, name, svc)
		dirty[name] = true
	}
	for name, slice := range u.Slices {
		r.applySlice(name, slice, dirty)
	}
	node, zone := r.applyNode(u.Nodes)
	if node || zone {
		for name := range r.services {
			dirty[name] = true
		}
	}
	d := differ{frontends: map[Key]bool{}, pools: map[PoolID]bool{}, checks: map[Name]bool{}}
	for name := range dirty {
		r.replace(name, &d)
	}
	return Change{
		Frontends: slices.SortedFunc(maps.Keys(d.frontends), Key.Compare),
		Pools:     slices.SortedFunc(maps.Keys(d.pools), PoolID.Compare),
		Node:      node,

		HealthChecks: slices.SortedFunc(maps.Keys(d.checks), Name.Compare),
	}
}

// Conflicts are the claims that were lost, sorted by destination.
func (r *Resolver) Conflicts() []Conflict {
	var out []Conflict
	for key := range r.contested {
		claims := r.claims[key]
		for _, loser := range claims[1:] {
			out = append(out, Conflict{Key: key, Winner: claims[0].frontend.Origin, Loser: loser.frontend.Origin})
		}
	}
	for name := range r.clashing {
		out = append(out, r.rows[name].clashes...)
	}
	slices.SortFunc(out, Conflict.Compare)
	return out
}

// applySlice files a slice under its Service, which it may have changed.
func (r *Resolver) applySlice(name Name, slice *Slice, dirty map[Name]bool) {
	if old, ok := r.sliceOf[name]; ok {
		delete(r.slices[old], name)
		if len(r.slices[old]) == 0 {
			delete(r.slices, old)
		}
		delete(r.sliceOf, name)
		dirty[old] = true
	}
	if slice == nil || slice.Service == "" {
		return
	}
	svc := Name{Namespace: name.Namespace, Name: slice.Service}
	if r.slices[svc] == nil {
		r.slices[svc] = map[Name]*Slice{}
	}
	r.slices[svc][name] = slice
	r.sliceOf[name] = svc
	dirty[svc] = true
}

// applyNode notes what matters of this node's own object. It says whether the
// Table's facts about the node changed, and whether the zone did.
func (r *Resolver) applyNode(nodes map[string]*Node) (facts, zone bool) {
	node, ok := nodes[r.config.NodeName]
	if !ok {
		return false, false
	}
	if node == nil {
		node = &Node{}
	}
	pods, nodePorts := r.config.podCIDRs(node), r.config.NodePortCIDRs
	if r.config.NodePortPrimary || len(nodePorts) == 0 {
		nodePorts = append(primary(node.Addresses), nodePorts...)
	}
	t := &r.table
	facts = !slices.Equal(t.NodeAddrs, node.Addresses) || !slices.Equal(t.PodCIDRs, pods) || !slices.Equal(t.NodePortCIDRs, nodePorts)
	zone = r.zone != node.Zone
	t.NodeAddrs, t.PodCIDRs, t.NodePortCIDRs, r.zone = node.Addresses, pods, nodePorts, node.Zone
	return facts, zone
}

// primary are the first address of each family.
func primary(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, ipv6 := range []bool{false, true} {
		i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == ipv6 })
		if i >= 0 {
			out = append(out, netip.PrefixFrom(addrs[i], addrs[i].BitLen()))
		}
	}
	return out
}

// here is what resolve must know of this node.
func (r *Resolver) here() place {
	return place{
		node:           r.config.NodeName,
		zone:           r.zone,
		addrs:          r.table.NodeAddrs,
		pods:           r.table.PodCIDRs,
		podsElse:       len(r.table.PodInterfaces) > 0,
		masqueradeAll:  r.config.MasqueradeAll,
		rangesForNodes: r.config.SourceRangesOnNodePorts,
	}
}

// differ collects what changes in a Table.
type differ struct {
	frontends map[Key]bool
	pools     map[PoolID]bool
	checks    map[Name]bool
}

// replace resolves one Service and puts its rows in the place of its former ones.
func (r *Resolver) replace(name Name, d *differ) {
	old, now := r.rows[name], rows{}
	if svc, ok := r.services[name]; ok {
		from := slices.Collect(maps.Values(r.slices[name]))
		now = resolve(svc, from, r.here())
		r.rows[name] = now
	} else {
		delete(r.rows, name)
	}
	setMember(r.clashing, name, len(now.clashes) > 0)
	if old.check != now.check {
		d.checks[name] = true
	}
	if now.check == (HealthCheck{}) {
		delete(r.table.HealthChecks, name)
	} else {
		r.table.HealthChecks[name] = now.check
	}
	for id, pool := range now.pools {
		if before, ok := r.table.Pools[id]; !ok || !before.equal(pool) {
			r.table.Pools[id] = pool
			d.pools[id] = true
		}
	}
	for id := range old.pools {
		if _, ok := now.pools[id]; !ok {
			delete(r.table.Pools, id)
			d.pools[id] = true
		}
	}
	for key, frontend := range now.frontends {
		r.claim(name, key, &claim{now.created, frontend}, d)
	}
	for key := range old.frontends {
		if _, ok := now.frontends[key]; !ok {
			r.claim(name, key, nil, d)
		}
	}
}

// claim replaces the claim of a Service on a destination (nil: it has none any
// more), and gives the destination to whom it now belongs.
func (r *Resolver) claim(svc Name, key Key, c *claim, d *differ) {
	claims := slices.DeleteFunc(r.claims[key], func(c claim) bool {
		return c.frontend.Origin.Service == svc
	})
	if c != nil {
		claims = append(claims, *c)
		slices.SortFunc(claims, claim.compare)
	}
	setMember(r.contested, key, len(claims) > 1)
	if len(claims) == 0 {
		delete(r.claims, key)
		delete(r.table.Frontends, key)
		d.frontends[key] = true
		return
	}
	r.claims[key] = claims
	if before, ok := r.table.Frontends[key]; !ok || !before.equal(claims[0].frontend) {
		r.table.Frontends[key] = claims[0].frontend
		d.frontends[key] = true
	}
}

func (p Pool) equal(q Pool) bool {
	return p.Protocol == q.Protocol && p.Affinity == q.Affinity &&
		slices.Equal(p.Backends, q.Backends) && slices.Equal(p.Serving, q.Serving)
}

func setOrDelete[K comparable, V any](m map[K]*V, key K, value *V) {
	if value == nil {
		delete(m, key)
	} else {
		m[key] = value
	}
}

func setMember[K comparable](set map[K]bool, key K, in bool) {
	if in {
		set[key] = true
	} else {
		delete(set, key)
	}
}
