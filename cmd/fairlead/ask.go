package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/proxy/inspect"
)

// defaultSocket is where a proxy answers 'fairlead status' and the like.
const defaultSocket = "/run/fairlead/proxy.sock"

// askFlags say which proxy is asked, and how the answer is printed.
type askFlags struct {
	socket  string
	output  string
	formats []string // that output may be
}

func (f *askFlags) register(cmd *cobra.Command, formats ...string) {
	cmd.Flags().StringVar(&f.socket, "socket", defaultSocket, "socket at which the proxy answers (its --inspect-socket)")
	f.registerOutput(cmd, formats...)
}

// registerOutput is for commands that print in formats and ask no proxy.
func (f *askFlags) registerOutput(cmd *cobra.Command, formats ...string) {
	f.formats = append([]string{"table"}, formats...)
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", strings.Join(f.formats, ", "))
}

func (f *askFlags) client() *inspect.Client { return inspect.NewClient("'fairlead proxy'", f.socket) }

// ask has a proxy answer a question into v.
func (f *askFlags) ask(ctx context.Context, question string, v any) error {
	return explain(f.client().Get(ctx, question, v))
}

// nodeSocketFlag says at which socket 'fairlead node' is asked.
type nodeSocketFlag struct{ nodeSocket string }

func (f *nodeSocketFlag) registerNodeSocket(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.nodeSocket, "node-socket", defaultNodeSocket, "socket at which 'fairlead node' answers (its --inspect-socket)")
}

// askNode asks 'fairlead node' how it is.
func (f *nodeSocketFlag) askNode(ctx context.Context, s *nodeStatus) error {
	return explain(inspect.NewClient("'fairlead node'", f.nodeSocket).Get(ctx, "/status", s))
}

// explain adds to an error what to do about it.
func explain(err error) error {
	if errors.Is(err, inspect.ErrNobody) {
		return fmt.Errorf("%w: is it started, with --inspect-socket as here?", err)
	}
	return err
}

// printAs prints v in a format for machines. It says whether there was one.
func (f *askFlags) printAs(w io.Writer, v any) (bool, error) {
	switch f.output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return true, e.Encode(v)
	case "yaml":
		text, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(text)
		}
		return true, err
	}
	return false, nil
}

// check refuses flags that make no sense.
func (f *askFlags) check() error {
	if !slices.Contains(f.formats, f.output) {
		return usagef("--output %q: allowed are %s", f.output, strings.Join(f.formats, ", "))
	}
	return nil
}
