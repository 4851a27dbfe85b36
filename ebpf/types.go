package ebpf

// What the maps hold, as c/types.h describes it. Ports, and the words of addresses,
// are in network byte order.

type (
	// Addr is an address: IPv6, or IPv4-mapped IPv6.
	Addr = bpfAddr
	// Endpoint is an address and a port.
	Endpoint = bpfEndpoint
	// FrontendKey is a destination.
	FrontendKey = bpfFrontendKey
	// Frontend is what becomes of flows to it.
	Frontend = bpfFrontend
	// Path is what becomes of those of one class of senders.
	Path = bpfPath
	// Origin is the name of a Service port.
	Origin = bpfOrigin
	// SourceKey is who may use a frontend.
	SourceKey = bpfSourceKey
	// Pool is the backends of one moment, and how they take turns.
	Pool = bpfPool
	// Generation is which rows of backends those are.
	Generation = bpfGeneration
	// Turn is how many flows a pool has led.
	Turn = bpfTurn
	// BackendKey is a place in the order of backends.
	BackendKey = bpfBackendKey
	// Backend is who is there.
	Backend = bpfBackend
	// MemberKey is a backend of a pool, by who it is.
	MemberKey = bpfMemberKey
	// NodeAddr is what an address of the node is for.
	NodeAddr = bpfNodeAddr
	// PrefixKey is a range of addresses.
	PrefixKey = bpfPrefixKey
	// Peer is what a socket is connected to.
	Peer = bpfPeer
)

// Classes of senders: indexes of Frontend.Paths.
const (
	ClassPod     = bpfClassCLASS_POD
	ClassNode    = bpfClassCLASS_NODE
	ClassOutside = bpfClassCLASS_OUTSIDE
)

// Verdicts of a Path.
const (
	Pass    = uint8(bpfVerdictVERDICT_PASS)
	Forward = uint8(bpfVerdictVERDICT_FORWARD)
	Reject  = uint8(bpfVerdictVERDICT_REJECT)
	Drop    = uint8(bpfVerdictVERDICT_DROP)
)

// Flags of a Frontend, of a Pool and of a member.
const (
	FrontendSources = uint32(bpfFrontendFlagsFRONTEND_SOURCES)
	PoolMembers     = uint32(bpfPoolFlagsPOOL_MEMBERS)
	PoolReset       = uint32(bpfPoolFlagsPOOL_RESET)
	MemberServes    = uint32(bpfMemberMEMBER_SERVES)
	MemberTurns     = uint32(bpfMemberMEMBER_TURNS)
)

// Names of the maps that Config.Sizes may name.
const (
	MapFrontends  = bpfMapFrontends
	MapPools      = bpfMapPools
	MapBackends   = bpfMapBackends
	MapMembers    = bpfMapMembers
	MapOrigins    = bpfMapOrigins
	MapSources    = bpfMapSources
	MapNodeAddrs  = bpfMapNodeAddrs
	MapPodCIDRs   = bpfMapPodCidrs
	MapLeaving    = bpfMapLeaving
	MapAffinities = bpfMapAffinities
	MapDatagrams  = bpfMapDatagrams
	MapFlows      = bpfMapFlows
)
