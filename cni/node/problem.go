package node

import (
	"errors"
)

// Problem is why some pods are not reached, or not as was asked. All others are.
type Problem struct {
	Kind   Kind   `json:"kind"`
	Member string `json:"node"` // the node that it is about
	Text   string `json:"text"`
}

func (p Problem) String() string { return "node " + p.Member + ": " + p.Text }

// Kind says for programs what is wrong.
type Kind string

// The kinds.
const (
	NoPodCIDR        Kind = "NoPodCIDR"               // of any family
	NoPodCIDROfBoth  Kind = "PodCIDRMissing"          // of a family that others have
	NoAddress        Kind = "NodeAddressMissing"      // of a family, or none that can be used
	IPv6Disabled     Kind = "IPv6Disabled"            // in the kernel of this node
	AddressTaken     Kind = "NodeAddressTaken"        // by another node
	NotOnLink        Kind = "NodeNotOnLink"           // and routing is Direct
	OverlapsNode     Kind = "PodCIDROverlapsNode"     // the pod CIDR or the address of another one
	OverlapsLink     Kind = "PodCIDROverlapsLink"     // of this node
	OverlapsServices Kind = "PodCIDROverlapsServices" // see Options
	ServicesOnLink   Kind = "ServicesOverlapLink"     // of this node
	PortTaken        Kind = "VXLANPortTaken"          // on this node
	MTUTooLarge      Kind = "MTUTooLarge"             // that pods were to have
	NotProgrammed    Kind = "NotProgrammed"           // the kernel of this node refuses something else
)

// ErrPortTaken says that the UDP port of VXLAN is another program's.
var ErrPortTaken = errors.New("taken by another program")

// Failed makes Problems of a node of an error: of one of errors.Join one each.
func Failed(member string, err error) []Problem {
	var problems []Problem
	for _, err := range each(err) {
		kind := NotProgrammed
		if errors.Is(err, ErrPortTaken) {
			kind = PortTaken
		}
		problems = append(problems, Problem{kind, member, err.Error()})
	}
	return problems
}

func each(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, err := range joined.Unwrap() {
		all = append(all, each(err)...)
	}
	return all
}
