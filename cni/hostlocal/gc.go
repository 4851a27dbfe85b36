package hostlocal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/ipam"
)

// GC gives back what is held by attachments to this network that the
// configuration does not list as valid.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	if _, _, err := openStore(args.StdinData); err != nil {
		return err
	}
	valid, err := validOwners(args.StdinData)
	if err != nil {
		return err
	}
	_, err = p.Collect(ctx, args.StdinData, func(leases []ipam.Lease) []ipam.Lease {
		return slices.DeleteFunc(leases, func(l ipam.Lease) bool { return valid[l.Owner] })
	})
	return err
}

// Collect gives back, in one transaction, those of the leases of a network that
// pick returns, and returns them. Other processes wait as long as pick takes: no
// row comes or goes meanwhile. A row that cannot be read is not among the leases and
// does not keep the others from going; it is in the error.
func (p *Plugin) Collect(ctx context.Context, stdin []byte, pick func([]ipam.Lease) []ipam.Lease) (gone []ipam.Lease, err error) {
	store, _, err := openStore(stdin)
	if err != nil {
		return nil, err
	}
	if there, err := store.Exists(); err != nil || !there {
		return nil, coded(err)
	}
	var unreadable error
	err = p.update(ctx, store, func(tx ipam.Tx, boot string) error {
		var leases []ipam.Lease
		leases, unreadable = ipam.Leases(tx, boot)
		gone = pick(leases)
		for _, lease := range gone {
			if err := ipam.Release(tx, lease.Owner, p.Now()); err != nil {
				return fmt.Errorf("release addresses of %s: %w", lease.Owner, err)
			}
		}
		return nil
	})
	if err != nil {
		gone = nil // all of it is as before
	}
	return gone, coded(errors.Join(unreadable, err))
}

// validOwners reads cni.dev/valid-attachments. A list that is absent is an error:
// taken for an empty one it would free the addresses of every pod.
func validOwners(stdin []byte) (map[ipam.Owner]bool, error) {
	const key = "cni.dev/valid-attachments"
	var conf struct {
		Valid json.RawMessage `json:"cni.dev/valid-attachments"`
	}
	if err := decode("", stdin, &conf); err != nil {
		return nil, err
	}
	if conf.Valid == nil {
		return nil, invalid(key, "no value is not allowed: it must be the list of the attachments to keep")
	}
	var attachments []types.GCAttachment
	if err := decode(key, conf.Valid, &attachments); err != nil {
		return nil, err
	}
	valid := map[ipam.Owner]bool{}
	for i, a := range attachments {
		if a.ContainerID == "" || a.IfName == "" {
			return nil, invalid(fmt.Sprintf("%s[%d]", key, i), "it must have a containerID and an ifname")
		}
		valid[ipam.Owner{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	return valid, nil
}
