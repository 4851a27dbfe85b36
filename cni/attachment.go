package cni

import (
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
)

// attachment is one call of the runtime about one interface of one pod, with
// both namespaces open.
type attachment struct {
	mode.Attachment
	args       *skel.CmdArgs
	conf       config
	connection mode.Connection
}

// open opens the namespaces. Close closes them.
func open(args *skel.CmdArgs, conf config) (*attachment, error) {
	host, err := link.Host()
	if err != nil {
		return nil, err
	}
	pod, err := link.Open(args.Netns)
	if err != nil {
		host.Close()
		return nil, types.NewError(types.ErrInvalidNetNS, "CNI_NETNS: "+err.Error(), "")
	}
	a := &attachment{args: args, conf: conf, Attachment: mode.Attachment{
		Network:     conf.Name,
		ContainerID: args.ContainerID,
		IfName:      args.IfName,
		Sandbox:     args.Netns,
		MAC:         conf.mac,
		Host:        host,
		Pod:         pod,
	}}
	a.connection = conf.mode.Connect(&a.Attachment)
	// skel looks for this too, but after ADD.
	if host.Same(pod) && !overridden(args.NetnsOverride) {
		a.close()
		return nil, types.NewError(types.ErrInvalidNetNS, "CNI_NETNS: "+args.Netns+" is the namespace of the host itself, not of a pod", "")
	}
	return a, nil
}

// overridden reads CNI_NETNS_OVERRIDE as skel does.
func overridden(value string) bool {
	return value == "1" || strings.EqualFold(value, "true")
}

func (a *attachment) close() {
	a.Pod.Close()
	a.Host.Close()
}
