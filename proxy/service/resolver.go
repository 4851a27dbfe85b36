package service

import (
	"cmp"
	"iter"
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
	slices   map[Name][]*Slice // Service → its slices
	sliceOf  map[Name]Name     // slice's name → Service under which it is in slices
	parts    map[Name]part     // Service → what it contributes
	// contested has the claims on destinations that several Services want, the
	// winner first; clashing are the Services whose own ports clash.
	contested map[Key][]claim
	clashing  map[Name]bool
	// quarantined Services contribute nothing.
	quarantined map[Name]bool
	zone        string // of this node
	table       Table
}

// part is what a Service contributes to the Table, by its keys: the rest is in the
// Table, and not kept twice.
type part struct {
	created int64
	keys    []Key // of destinations it claims
	pools   []PoolID
	clashes []Conflict
	check   HealthCheck
}

// claim is a Service's wish to have a destination.
type claim struct {
	created int64
	origin  Origin
}

func (c claim) compare(d claim) int {
	return cmp.Or(
		cmp.Compare(c.created, d.created),
		c.origin.Service.Compare(d.origin.Service))
}

// NewResolver returns a Resolver that knows no object yet.
func NewResolver(config Config) *Resolver {
	return &Resolver{
		config:    config,
		services:  map[Name]*Service{},
		slices:    map[Name][]*Slice{},
		sliceOf:   map[Name]Name{},
		parts:     map[Name]part{},
		contested: map[Key][]claim{},
		clashing:  map[Name]bool{},

		quarantined: map[Name]bool{},
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
	for name := range dirty {
		delete(r.quarantined, name)
	}
	change := r.replaceAll(dirty)
	change.Node = node
	return change
}

// replaceAll resolves Services anew.
func (r *Resolver) replaceAll(dirty map[Name]bool) Change {
	d := differ{frontends: map[Key]*Frontend{}, pools: map[PoolID]bool{}, checks: map[Name]bool{}}
	for name := range dirty {
		r.replace(name, &d)
	}
	return Change{
		Frontends:    slices.SortedFunc(r.changed(d.frontends), Key.Compare),
		Pools:        slices.SortedFunc(maps.Keys(d.pools), PoolID.Compare),
		HealthChecks: slices.SortedFunc(maps.Keys(d.checks), Name.Compare),
	}
}

// changed are the keys of frontends that are others than they were. What Services
// take from each other, one after the other, may end as it began.
func (r *Resolver) changed(were map[Key]*Frontend) iter.Seq[Key] {
	return func(yield func(Key) bool) {
		for key, was := range were {
			is, ok := r.table.Frontends[key]
			if same := was == nil && !ok || was != nil && ok && was.equal(is); !same && !yield(key) {
				return
			}
		}
	}
}

// Conflicts are the claims that were lost, sorted by destination.
func (r *Resolver) Conflicts() []Conflict {
	var out []Conflict
	for key, claims := range r.contested {
		for _, loser := range claims[1:] {
			out = append(out, Conflict{Key: key, Winner: claims[0].origin, Loser: loser.origin})
		}
	}
	for name := range r.clashing {
		out = append(out, r.parts[name].clashes...)
	}
	slices.SortFunc(out, Conflict.Compare)
	return out
}

// applySlice files a slice under its Service, which it may have changed.
func (r *Resolver) applySlice(name Name, slice *Slice, dirty map[Name]bool) {
	if old, ok := r.sliceOf[name]; ok {
		r.slices[old] = slices.DeleteFunc(r.slices[old], func(s *Slice) bool { return s.Name == name })
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
	r.slices[svc] = append(r.slices[svc], slice)
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
	facts = !slices.Equal(t.NodeAddrs, node.Addresses) || !slices.Equal(t.NodePortCIDRs, nodePorts) ||
		!slices.Equal(t.PodCIDRs, pods) || !slices.Equal(t.OwnPodCIDRs, node.PodCIDRs)
	zone = r.zone != node.Zone
	t.NodeAddrs, t.PodCIDRs, t.OwnPodCIDRs, t.NodePortCIDRs, r.zone = node.Addresses, pods, node.PodCIDRs, nodePorts, node.Zone
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
	frontends map[Key]*Frontend // as they were; nil: there was none
	pools     map[PoolID]bool
	checks    map[Name]bool
}

// resolved are the rows of a Service; none if there is none, or it is in
// quarantine.
func (r *Resolver) resolved(name Name) rows {
	svc, ok := r.services[name]
	if !ok || r.quarantined[name] {
		return rows{}
	}
	return resolve(svc, r.slices[name], r.here())
}

// replace resolves one Service and puts its rows in the place of its former ones.
func (r *Resolver) replace(name Name, d *differ) {
	old, now := r.parts[name], r.resolved(name)
	r.keep(name, now)
	if old.check != now.check {
		d.checks[name] = true
	}
	for id, pool := range now.pools {
		if before, ok := r.table.Pools[id]; !ok || !before.equal(pool) {
			r.table.Pools[id] = pool
			d.pools[id] = true
		}
	}
	for _, id := range old.pools {
		if _, ok := now.pools[id]; !ok {
			delete(r.table.Pools, id)
			d.pools[id] = true
		}
	}
	for key := range now.frontends {
		r.claim(name, key, now, d)
	}
	for _, key := range old.keys {
		if _, ok := now.frontends[key]; !ok {
			r.claim(name, key, now, d)
		}
	}
}

// keep notes what a Service contributes.
func (r *Resolver) keep(name Name, now rows) {
	if _, ok := r.services[name]; !ok {
		delete(r.parts, name)
	} else {
		r.parts[name] = part{
			created: now.created,
			keys:    slices.Collect(maps.Keys(now.frontends)),
			pools:   slices.Collect(maps.Keys(now.pools)),
			clashes: now.clashes,
			check:   now.check,
		}
	}
	setMember(r.clashing, name, len(now.clashes) > 0)
	if now.check == (HealthCheck{}) {
		delete(r.table.HealthChecks, name)
	} else {
		r.table.HealthChecks[name] = now.check
	}
}

// claim looks anew whether a Service claims a destination, and gives it to whom it
// now belongs.
func (r *Resolver) claim(svc Name, key Key, now rows, d *differ) {
	claims := slices.DeleteFunc(r.claims(key), func(c claim) bool { return c.origin.Service == svc })
	if f, ok := now.frontends[key]; ok {
		claims = append(claims, claim{now.created, f.Origin})
		slices.SortFunc(claims, claim.compare)
	}
	if len(claims) > 1 {
		r.contested[key] = claims
	} else {
		delete(r.contested, key)
	}
	before, had := r.table.Frontends[key]
	if had && len(claims) > 0 && claims[0].origin.Service == before.Origin.Service && before.Origin.Service != svc {
		return // still another's
	}
	frontend, ok := now.frontends[key]
	if len(claims) > 0 && claims[0].origin.Service != svc {
		// Not there if that Service is gone too: its own turn is to come.
		frontend, ok = r.resolved(claims[0].origin.Service).frontends[key]
	}
	switch {
	case !ok:
		delete(r.table.Frontends, key)
	case had && before.equal(frontend):
		return
	default:
		r.table.Frontends[key] = frontend
	}
	if _, ok := d.frontends[key]; ok {
		return
	}
	d.frontends[key] = nil
	if had {
		d.frontends[key] = &before
	}
}

// claims are those on a destination, the winner first.
func (r *Resolver) claims(key Key) []claim {
	if claims, ok := r.contested[key]; ok {
		return slices.Clone(claims)
	}
	if f, ok := r.table.Frontends[key]; ok {
		return []claim{{r.parts[f.Origin.Service].created, f.Origin}}
	}
	return nil
}

func (p Pool) equal(q Pool) bool {
	return p.Protocol == q.Protocol && p.Affinity == q.Affinity && p.Reset == q.Reset &&
		slices.Equal(p.Backends, q.Backends) && slices.Equal(p.Serving, q.Serving) && slices.Equal(p.External, q.External)
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
