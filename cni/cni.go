// Package cni is the CNI plugin: it decodes a network's configuration, and does
// what the runtime asks for (the verbs of the CNI specification 1.1) as a list
// of steps that are undone when one fails.
//
//	runtime ──environment, stdin──▶ cmd/fairlead-cni ──▶ cni ──▶ hostlocal or another program: addresses
//	        ◀────result, error─────                          ├──▶ a mode: the pod's interface and what it is connected to
//	                                                         └──▶ link: the kernel
//
// It keeps nothing itself: addresses are IPAM's to keep, the rest is read from
// the kernel. Errors are *types.Error with a code of the specification.
package cni

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/hostlocal"
)

// Plugin is the CNI plugin.
type Plugin struct {
	Stdout io.Writer // takes results
}

// Funcs are the verbs as skel calls them.
func (p *Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: verb(p.Add), Del: verb(p.Del), Check: verb(p.Check),
		Status: verb(p.Status), GC: verb(p.GC),
	}
}

// IPAMFuncs are the verbs of the IPAM plugin alone, for other plugins that
// delegate to it.
func (p *Plugin) IPAMFuncs() skel.CNIFuncs {
	ipam := hostlocal.New()
	add := func(ctx context.Context, args *skel.CmdArgs) error {
		result, err := ipam.Add(ctx, args)
		if err != nil {
			return err
		}
		return p.print(result, args.StdinData)
	}
	return skel.CNIFuncs{
		Add: verb(add), Del: verb(ipam.Del), Check: verb(ipam.Check),
		Status: verb(ipam.Status), GC: verb(ipam.GC),
	}
}

// verb has f return errors as the specification wants them, with all of their
// text. skel passes on only the *types.Error that it finds inside, without the
// words around it. Several errors (errors.Join) become one line.
func verb(f func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		err := f(context.Background(), args)
		if err == nil {
			return nil
		}
		code := types.ErrInternal
		var coded *types.Error
		if errors.As(err, &coded) && coded.Code != types.ErrUnknown {
			code = coded.Code
		}
		return types.NewError(code, strings.ReplaceAll(err.Error(), "\n", "; "), "")
	}
}
