package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/demo"
	"github.com/fairlead/fairlead/e2e/lab"
)

func newUp() *cobra.Command {
	opts := lab.Options{Keep: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build a cluster and keep it until down",
		Long: `Build a cluster and keep it until down.

On each node N there is a pod client-N, and the pods web-1, web-2 and web-3 are
the backends of the Service web.`,
		Example: `  fairlead-lab up
  fairlead-lab up --id blue --nodes 5`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepare(cmd, &opts); err != nil {
				return err
			}
			return runUp(cmd, opts)
		},
	}
	buildFlags(cmd, &opts)
	cmd.Flags().StringVar(&opts.ID, "id", "", "name of the lab (default: random)")
	return cmd
}

func runUp(cmd *cobra.Command, opts lab.Options) error {
	ctx := cmd.Context()
	scene, err := demo.Build(ctx, opts, newProgress(cmd.OutOrStdout()))
	switch {
	case ctx.Err() != nil && scene != nil:
		return errors.Join(context.Cause(ctx), scene.Close())
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return errFailed
	}
	if err := scene.Lab.Keep(); err != nil {
		return errors.Join(err, scene.Close())
	}
	printHints(scene)
	return nil
}

func printHints(scene *demo.Scene) {
	l := scene.Lab
	fmt.Printf(`
Lab %[1]s is up. To try it:
  %[2]s exec --id %[1]s client-1 -- %[2]s ask tcp %[3]s
  %[2]s exec --id %[1]s client-1 -- %[2]s ask -n 6 sctp %[4]s
  %[2]s exec --id %[1]s node-1 -- ip route
  %[2]s down --id %[1]s
What the proxy of a node watches is in %[5]s.
`, l.ID, os.Args[0], scene.Web[1].Endpoints()[0].Addr, scene.VIP(), l.Nodes[0].Manifests())
}
