package mode

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"strings"

	"github.com/fairlead/fairlead/cni/link"
)

// Owner is whose a thing on the node is: one interface of one pod.
type Owner struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Owner names the attachment to what keeps something for it.
func (a *Attachment) Owner() Owner {
	return Owner{a.Network, a.ContainerID, a.IfName}
}

// The lengths that names are written out to in comments, of which nft(8) and
// iptables-extensions(8) allow 128 and 256 bytes. Container ids of all runtimes
// have 64.
const (
	networkLength   = 32
	containerLength = 64
)

// String is the owner in a comment: "network/container/interface". None of them
// has a slash in it (CNI specification, section 2). A name that is too long is
// replaced by a hash.
func (o Owner) String() string {
	return networkPrefix(o.Network) + shorten(o.ContainerID, containerLength) + "/" + o.IfName
}

// InNetwork reports whether a comment names an owner in a network.
func InNetwork(comment, network string) bool {
	return strings.HasPrefix(comment, networkPrefix(network))
}

func networkPrefix(network string) string { return shorten(network, networkLength) + "/" }

func shorten(name string, length int) string {
	if len(name) <= length {
		return name
	}
	hash := sha256.Sum256([]byte(name))
	return hex.EncodeToString(hash[:])[:length]
}

// Group is the interface group (netdevice(7), IFLA_GROUP) of a network: of ports
// of a bridge on the host, of macvlans in pods. It is part of the message that
// makes an interface, so that GC and DEL know whose it is also when ADD died
// right after it. Groups that people give are small numbers: the second highest
// bit sets these apart. (With the highest one ip(8) would show them as negative.)
func Group(network string) uint32 {
	hash := fnv.New32a()
	hash.Write([]byte(network))
	return hash.Sum32()>>1 | 1<<30
}

// Foreign reports whether an interface is one of another network of ours.
func Foreign(d link.Device, network string) bool {
	return d.Group>>30 == 1 && d.Group != Group(network)
}
