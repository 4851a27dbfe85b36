package cni

import (
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/link"
)

// attachment is one call of the runtime about one interface of one pod, with
// both namespaces open.
type attachment struct {
	args      *skel.CmdArgs
	conf      config
	host, pod *link.NS
	result    *types100.Result // of ADD in the making; of CHECK prevResult
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
	a := &attachment{args: args, conf: conf, host: host, pod: pod}
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
	a.pod.Close()
	a.host.Close()
}

// bridge is what mode bridge needs to know of the attachment.
func (a *attachment) bridge() *bridge.Attachment {
	return &bridge.Attachment{
		Config:      a.conf.bridge,
		Host:        a.host,
		Pod:         a.pod,
		ContainerID: a.args.ContainerID,
		IfName:      a.args.IfName,
		Sandbox:     a.args.Netns,
		MAC:         a.conf.mac,
		Result:      a.result,
	}
}
