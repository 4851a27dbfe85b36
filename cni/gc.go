package cni

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/hostlocal"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/macvlan"
	"github.com/fairlead/fairlead/cni/mode"
)

// GC removes what is left of pods of this network that the runtime does not
// know, whose DEL was lost. It does what it can, also with a configuration that
// ADD refuses, and reports at the end all that it could not.
//
// Interfaces go before addresses, as in DEL.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	var d document
	_ = decode(args.StdinData, &d) // as in DEL
	valid, err := validAttachments(args.StdinData)
	if err != nil {
		return err
	}
	return errors.Join(collectLinks(d.Name, valid, args.StdinData), collectAddresses(ctx, d, args))
}

// validAttachments are the pods to keep. No list is not an empty list: that
// would cut off every pod of the network. But null is one: it is what libcni
// makes of a runtime's list that has nothing in it.
func validAttachments(stdin []byte) ([]types.GCAttachment, error) {
	const key = "cni.dev/valid-attachments"
	var keys map[string]json.RawMessage
	if err := decode(stdin, &keys); err != nil {
		return nil, err
	}
	if _, ok := keys[key]; !ok {
		return nil, invalid(key + ": no value is not allowed: GC needs the list of the attachments to keep")
	}
	var conf struct {
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := decode(stdin, &conf); err != nil {
		return nil, err
	}
	for i, v := range conf.Valid { // one that is not understood may be any of the pods
		if v.ContainerID == "" || v.IfName == "" {
			return nil, invalid("%s[%d]: it must have a containerID and an ifname", key, i)
		}
	}
	return conf.Valid, nil
}

func collectLinks(network string, valid []types.GCAttachment, stdin []byte) error {
	host, err := link.Host()
	if err != nil {
		return err
	}
	defer host.Close()
	keep := make([]mode.Owner, 0, len(valid))
	for _, v := range valid {
		keep = append(keep, mode.Owner{Network: network, ContainerID: v.ContainerID, IfName: v.IfName})
	}
	var config bridge.Config
	_ = decode(stdin, &config)
	return config.GC(host, network, keep)
}

func collectAddresses(ctx context.Context, d document, args *skel.CmdArgs) error {
	plugin, err := d.IPAM.plugin()
	if err != nil {
		return nil // no ADD succeeded with it
	}
	ipam, err := newIPAM(plugin, args.Path)
	if err != nil {
		return err
	}
	var inPods error
	if own, ok := ipam.(*hostlocal.Plugin); ok { // another program does not say what it holds
		inPods = collectInPods(ctx, own, args)
	}
	return errors.Join(inPods, ipam.GC(ctx, args))
}

// collectInPods removes interfaces that have no other end on the node.
func collectInPods(ctx context.Context, ipam *hostlocal.Plugin, args *skel.CmdArgs) error {
	leases, err := ipam.Stale(ctx, args)
	failed := []error{err}
	for _, l := range leases {
		failed = append(failed, macvlan.Collect(l.Netns, l.IfName, l.Addrs))
	}
	return errors.Join(failed...)
}
