package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cni/node/shim"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/pool"
	"github.com/fairlead/fairlead/proxy/service"
)

// shimFlags say whether the node and its macvlan pods are to reach each other.
type shimFlags struct {
	master string
	cidrs  []string
}

func (f *shimFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.master, "macvlan-shim", "", `interface whose macvlan pods the node is to reach, and they it, by a macvlan of its own ("" for none)`)
	cmd.Flags().StringSliceVar(&f.cidrs, "macvlan-shim-cidrs", nil, "ranges that those pods reach by way of the node: those of Services, and of pods that are not on macvlan")
}

// nodeShim keeps the macvlan shim in step with the blocks that the node has.
type nodeShim struct {
	master string
	cidrs  []netip.Prefix
	kernel *shim.Kernel
	log    *slog.Logger
	poked  chan struct{}
	routed chan struct{} // the routes of pods came or changed

	mu     sync.Mutex // guards what follows
	wanted shim.Wanted
	known  bool // Blocks of wanted are: without them those of a process before stay
	ready  bool // routes are known
	routes []ipam.PoolRoute
}

// newShim checks the flags; nil: there is to be none.
func (f shimFlags) newShim() (*nodeShim, error) {
	cidrs, err := parseCIDRs("--macvlan-shim-cidrs", f.cidrs, "")
	if err != nil {
		return nil, err
	}
	if f.master == "" {
		if len(cidrs) > 0 {
			return nil, usagef("--macvlan-shim-cidrs: --macvlan-shim is missing: the interface of the macvlan pods")
		}
		return nil, nil
	}
	return &nodeShim{
		master: f.master, cidrs: cidrs, wanted: shim.Wanted{Master: f.master},
		poked: make(chan struct{}, 1), routed: make(chan struct{}, 1),
	}, nil
}

// note takes in what the node's addresses and its own pods' ranges are, and those of all.
func (s *nodeShim) note(self *service.Node, all map[string]*service.Node) {
	var others []netip.Prefix
	for _, n := range all {
		if n != self {
			others = append(others, n.PodCIDRs...)
		}
	}
	s.mu.Lock()
	s.wanted.Addrs, s.wanted.Own, s.wanted.Others = self.Addresses, self.PodCIDRs, others
	s.mu.Unlock()
	s.poke()
}

// noteBlocks takes in which blocks the node has.
func (s *nodeShim) noteBlocks(blocks []netip.Prefix) {
	s.mu.Lock()
	same := s.known && slices.Equal(s.wanted.Blocks, blocks)
	s.wanted.Blocks, s.known = blocks, true
	s.mu.Unlock()
	if !same {
		s.poke()
	}
}

func (s *nodeShim) poke() {
	select {
	case s.poked <- struct{}{}:
	default:
	}
}

// podRoutes are those of pods with an address of a pool, once they are known.
func (s *nodeShim) podRoutes(p pool.Pool) ([]ipam.PoolRoute, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.routes), func(r ipam.PoolRoute) bool {
		return r.Dst.Addr().Is4() != p.Subnet.Addr().Is4()
	}), s.ready
}

// shimLook is between two looks without news; that rules are removed is not news.
const shimLook = 10 * time.Second

// run works until ctx ends. What is programmed stays.
func (s *nodeShim) run(ctx context.Context, lost <-chan struct{}) {
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.poked:
		case <-lost:
		case <-time.After(shimLook):
		}
		err := s.sync()
		switch {
		case err != nil && err.Error() != failed:
			failed = err.Error()
			s.log.Error("problem", "problem", err)
		case err == nil && failed != "":
			s.log.Info("mended", "problem", failed)
			failed = ""
		}
	}
}

func (s *nodeShim) sync() error {
	s.mu.Lock()
	wanted, known := s.wanted, s.known
	s.mu.Unlock()
	if len(wanted.Addrs) == 0 || !known {
		return nil // the cluster does not know this node yet, or it not its blocks
	}
	if err := s.kernel.Sync(wanted); err != nil {
		return err
	}
	routes, err := s.kernel.PodRoutes(wanted, s.cidrs)
	if err != nil {
		return err
	}
	var now []ipam.PoolRoute
	for _, r := range routes {
		now = append(now, ipam.PoolRoute{Dst: r.Dst, Via: r.Via})
	}
	s.mu.Lock()
	changed := !s.ready || !slices.Equal(s.routes, now)
	s.routes, s.ready = now, true
	s.mu.Unlock()
	if changed {
		select {
		case s.routed <- struct{}{}:
		default:
		}
	}
	return nil
}

// startShim has the shim kept in step until the function that it returns is called.
func (l *nodeLoop) startShim(ctx context.Context) (stop func(), err error) {
	if l.shim == nil {
		return func() {}, nil
	}
	l.shim.log = l.log
	ctx, cancel := context.WithCancel(ctx)
	lost, err := shim.Lost(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	if l.shim.kernel, err = shim.Open(); err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.shim.run(ctx, lost)
	}()
	return func() {
		cancel()
		<-ended
		l.shim.kernel.Close()
	}, nil
}
