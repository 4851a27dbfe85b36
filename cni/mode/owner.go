package mode

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Owner is whose a thing on the node is: one interface of one pod.
type Owner struct {
	Network     string
	ContainerID string
	IfName      string
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
