package ebpf

// Addr and the others are the rows of the maps, as c/types.h describes them. Ports, and the words of
// addresses, are in network byte order.
type (
	Addr        = bpfAddr
	Endpoint    = bpfEndpoint
	FrontendKey = bpfFrontendKey
	Frontend    = bpfFrontend
	Path        = bpfPath
	Origin      = bpfOrigin
	SourceKey   = bpfSourceKey
	Pool        = bpfPool
	Generation  = bpfGeneration
	Turn        = bpfTurn
	BackendKey  = bpfBackendKey
	Backend     = bpfBackend
	MemberKey   = bpfMemberKey
	NodeAddr    = bpfNodeAddr
	PrefixKey   = bpfPrefixKey
	Peer        = bpfPeer
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
	MapAffinities = bpfMapAffinities
	MapDatagrams  = bpfMapDatagrams
)
