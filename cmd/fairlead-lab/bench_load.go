package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/bench/load"
)

// newBenchLoad is what package datapath runs in namespaces: a client, or with
// arguments a server.
func newBenchLoad() *cobra.Command {
	return &cobra.Command{
		Use:    "load [NAME=ADDRESS:PORT...]",
		Short:  "Send and answer as bench tells it to",
		Hidden: true,
		RunE:   runBenchLoad,
	}
}

func runBenchLoad(cmd *cobra.Command, args []string) error {
	at := map[netip.AddrPort]string{}
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			return fmt.Errorf("parse address %q: %w", arg, err)
		}
		at[addr] = name
	}
	server, err := load.Listen(at)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(cmd.Context())
	if len(at) > 0 {
		group.Go(func() error { return server.Serve(ctx) })
	}
	group.Go(func() error {
		if err := load.Obey(ctx, os.Stdin, os.Stdout); err != nil {
			return err
		}
		os.Exit(0) // nobody is there any more to be answered
		return nil
	})
	return group.Wait()
}
