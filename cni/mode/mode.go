// Package mode is the seam between the verbs of the plugin and the ways to
// connect a pod to the node, of which there is one package each (bridge,
// macvlan). A verb does what every pod gets in every mode, and calls the
// network's mode for the rest:
//
//	ADD    IPAM ▶ Connection.Add ▶ addresses, routes, up ▶ Connection.Settle ▶ result
//	CHECK  IPAM ▶ interface, addresses, routes ▶ Connection.Check
//	STATUS IPAM ▶ Config.Status
//
// DEL and GC are not here. They must work after the network was changed from one
// mode to another, so they call every package that leaves something on the node.
package mode

import (
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// Attachment is one interface of one pod.
type Attachment struct {
	Network     string // name of the network
	ContainerID string
	IfName      string           // of the interface in the pod
	Sandbox     string           // path of the pod's namespace, as the runtime gave it
	MAC         net.HardwareAddr // of the interface in the pod; nil: any

	Host, Pod *link.NS

	// Result is what IPAM gave (empty without IPAM), and for Check what the
	// runtime kept. Add and Settle complete it.
	Result *types100.Result
}

// Config is what a network's configuration says about its mode: a struct that
// the configuration is decoded into as a whole.
type Config interface {
	// Complete gives keys that were left out their defaults and reports the first
	// value that is not allowed, as a *types.Error.
	Complete() error
	// Connect is where every verb about one pod begins. It changes nothing yet.
	Connect(*Attachment) Connection
	// Status reports why the next ADD would fail for want of what the mode
	// connects pods to. It changes nothing.
	Status(host *link.NS) error
}

// Connection is the pod's interface and what it is connected to.
type Connection interface {
	// Add makes the interface, named Attachment.IfName, in the pod: down and
	// without addresses.
	Add() (step.Undo, error)
	// Settle is called when the interface is up and has its addresses. It sees to
	// it that the pod can be reached at once, and puts the interfaces, as they are
	// now, into Attachment.Result.
	Settle() error
	// Check returns, in words, what differs from the configuration and
	// Attachment.Result, beyond the interface's own addresses and routes, which
	// are looked at by the verb. The error says what could not be read.
	Check(pod link.Device) ([]string, error)
}
