package main

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/echo"
)

func newAsk() *cobra.Command {
	var times int
	cmd := &cobra.Command{
		Use:   "ask tcp|udp|sctp ADDRESS:PORT",
		Short: "Ask the server of a pod what it sees",
		Long: `Open a connection to the server of a pod, or to a virtual IP, and print what it
answers: its name, the client's address as it sees it, its own address.

It asks from the network namespace that it is in: run it with exec.`,
		Example: "  fairlead-lab exec client-1 -- fairlead-lab ask -n 6 sctp 10.96.0.10:80",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := netip.ParseAddrPort(args[1])
			if err != nil {
				return fmt.Errorf("parse address %q: %w", args[1], err)
			}
			return ask(cmd, echo.Endpoint{Network: args[0], Addr: to}, times)
		},
	}
	cmd.Flags().IntVarP(&times, "times", "n", 1, "so many times, each over a new connection")
	return cmd
}

func ask(cmd *cobra.Command, to echo.Endpoint, times int) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	for range times {
		reply, err := echo.Ask(cmd.Context(), to.Network, netip.AddrPort{}, to.Addr)
		if err != nil {
			return err
		}
		if err := enc.Encode(reply); err != nil {
			return err
		}
	}
	return nil
}
