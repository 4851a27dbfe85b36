package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/demo"
	"github.com/fairlead/fairlead/e2e/lab"
)

func newDemo() *cobra.Command {
	var opts lab.Options
	var output string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build a cluster, check what Fairlead promises, take it down",
		Long: `Build a cluster, check what Fairlead promises, take it down.

Each line is a check with what was seen. The exit status is 0 if all are ok,
1 if one failed, 2 if the demo could not be run.`,
		Example: `  fairlead-lab demo
  fairlead-lab demo --nodes 5
  fairlead-lab demo -o json | jq .spread`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("print output as %q: allowed are text and json", output)
			}
			if err := prepare(cmd, &opts); err != nil {
				return err
			}
			return runDemo(cmd, opts, output == "json")
		},
	}
	buildFlags(cmd, &opts)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one object on standard output, the text on standard error")
	return cmd
}

func runDemo(cmd *cobra.Command, opts lab.Options, asJSON bool) error {
	text := cmd.OutOrStdout()
	if asJSON {
		text = cmd.ErrOrStderr()
	}
	p := newProgress(text)
	report, err := demo.Run(cmd.Context(), opts, p)
	if err != nil {
		return err
	}
	p.summary(report)
	if asJSON {
		if err := printJSON(cmd.OutOrStdout(), report); err != nil {
			return err
		}
	}
	if !report.OK {
		return errFailed
	}
	return nil
}

func printJSON(out io.Writer, report any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(report)
}
