package cni

import (
	"fmt"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// print writes a result in the version of the configuration.
func (p *Plugin) print(result *types100.Result, stdin []byte) error {
	wanted, err := (&version.ConfigDecoder{}).Decode(stdin)
	if err != nil {
		return err
	}
	converted, err := result.GetAsVersion(wanted)
	if err != nil {
		return err
	}
	return converted.PrintTo(p.Stdout)
}

// decodeResult reads a result of any version.
func decodeResult(text []byte) (*types100.Result, error) {
	result, err := create.CreateFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("decode result: %w", err)
	}
	latest, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	return latest, complete(latest)
}

// complete reports what is missing of a result and is relied on after this.
func complete(r *types100.Result) error {
	if i := slices.Index(r.Interfaces, nil); i >= 0 {
		return fmt.Errorf("decode result: interfaces[%d] is null", i)
	}
	for i, route := range r.Routes {
		if route == nil || !addr(route.Dst.IP).IsValid() {
			return fmt.Errorf("decode result: routes[%d] has no dst", i)
		}
	}
	for i, ip := range r.IPs {
		if ip == nil || !addr(ip.Address.IP).IsValid() {
			return fmt.Errorf("decode result: ips[%d] has no address", i)
		}
	}
	return nil
}

// previous is the result of the plugins before this one in the chain, or of ADD,
// nil if there is none.
func (d document) previous() (*types100.Result, error) {
	if len(d.PrevResult) == 0 || string(d.PrevResult) == "null" {
		return nil, nil
	}
	if kind := d.PrevResult[0]; kind != '{' { // the decoder would speak of Go
		return nil, invalid("prevResult: %s is not allowed: it must be a result, which is an object", d.PrevResult)
	}
	result, err := decodeResult(d.PrevResult)
	if err != nil {
		return nil, invalid("prevResult: %v", err)
	}
	return result, nil
}

// after is what this plugin returns when others came before it in the chain:
// their result with its own added (CNI specification, section 2).
func after(previous, own *types100.Result) *types100.Result {
	if previous == nil {
		return own
	}
	all := &types100.Result{
		CNIVersion: own.CNIVersion,
		Interfaces: slices.Concat(previous.Interfaces, own.Interfaces),
		IPs:        slices.Clone(previous.IPs),
		Routes:     slices.Concat(previous.Routes, own.Routes),
		DNS:        own.DNS,
	}
	for _, ip := range own.IPs {
		moved := *ip
		if moved.Interface != nil {
			moved.Interface = types100.Int(*moved.Interface + len(previous.Interfaces))
		}
		all.IPs = append(all.IPs, &moved)
	}
	if own.DNS.IsEmpty() {
		all.DNS = previous.DNS
	}
	return all
}
