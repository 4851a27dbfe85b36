package main

import (
	"fmt"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

// newServe is what package lab runs in each pod.
func newServe() *cobra.Command {
	return &cobra.Command{
		Use:    "serve NAME ADDRESS:PORT...",
		Short:  "Answer as a pod",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE:   runServe,
	}
}

func runServe(cmd *cobra.Command, args []string) error {
	var at []echo.Endpoint
	for _, arg := range args[1:] {
		addr, err := netip.ParseAddrPort(arg)
		if err != nil {
			return fmt.Errorf("parse address %q: %w", arg, err)
		}
		for _, network := range lab.Networks {
			at = append(at, echo.Endpoint{Network: network, Addr: addr})
		}
	}
	// A client that is gone makes a write fail, and the kernel send this signal, which in
	// other commands means that standard output is gone.
	signal.Ignore(syscall.SIGPIPE)
	server, err := echo.Listen(args[0], at...)
	if err != nil {
		return err
	}
	// The lab waits for this line. It is the only one: nobody reads on.
	fmt.Println("ready")
	return server.Serve(cmd.Context())
}
