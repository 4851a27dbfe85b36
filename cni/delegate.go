package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// delegate is IPAM by another program (section 4 of the specification).
//
// It is not cni/pkg/invoke, which brings net/http along (by way of
// OpenTelemetry): that makes the program a third larger, and each start of it a
// fifth slower.
type delegate struct {
	plugin string // the value of ipam.type
	path   string // of the program
}

// newDelegate finds the plugin in CNI_PATH.
func newDelegate(plugin, cniPath string) (delegate, error) {
	if strings.ContainsRune(plugin, filepath.Separator) {
		return delegate{}, invalid("ipam.type: %q is not allowed: it must be the name of a file, without a path", plugin)
	}
	for _, dir := range filepath.SplitList(cniPath) {
		path := filepath.Join(dir, plugin)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return delegate{plugin, path}, nil
		}
	}
	return delegate{}, invalid("ipam.type: there is no plugin %q in CNI_PATH (%s)", plugin, cniPath)
}

// Add also gives back what a plugin that failed may have kept, as the
// specification asks.
func (d delegate) Add(ctx context.Context, args *skel.CmdArgs) (*types100.Result, error) {
	result, err := d.add(ctx, args)
	if err == nil {
		return result, nil
	}
	if undo := d.Del(ctx, args); undo != nil {
		err = fmt.Errorf("%w; undo: %w", err, undo)
	}
	return nil, err
}

func (d delegate) add(ctx context.Context, args *skel.CmdArgs) (*types100.Result, error) {
	out, err := d.run(ctx, "ADD", args)
	if err != nil {
		return nil, err
	}
	result, err := decodeResult(out)
	if err != nil {
		return nil, fmt.Errorf("IPAM plugin %s: %w", d.plugin, err)
	}
	if len(result.IPs) == 0 {
		return nil, fmt.Errorf("IPAM plugin %s: its result has no address", d.plugin)
	}
	return result, nil
}

func (d delegate) Del(ctx context.Context, args *skel.CmdArgs) error {
	_, err := d.run(ctx, "DEL", args)
	return err
}

func (d delegate) Check(ctx context.Context, args *skel.CmdArgs) error {
	_, err := d.run(ctx, "CHECK", args)
	return err
}

func (d delegate) Status(ctx context.Context, args *skel.CmdArgs) error {
	_, err := d.run(ctx, "STATUS", args)
	return err
}

func (d delegate) GC(ctx context.Context, args *skel.CmdArgs) error {
	_, err := d.run(ctx, "GC", args)
	return err
}

// run starts the plugin in this thread's namespace, the host's, and returns
// what it printed. An error wraps the *types.Error that the plugin reported.
func (d delegate) run(ctx context.Context, verb string, args *skel.CmdArgs) ([]byte, error) {
	var out bytes.Buffer
	program := exec.CommandContext(ctx, d.path)
	program.Env = append(os.Environ(), // the last of two values counts
		"CNI_COMMAND="+verb,
		"CNI_CONTAINERID="+args.ContainerID,
		"CNI_NETNS="+args.Netns,
		"CNI_IFNAME="+args.IfName,
		"CNI_ARGS="+args.Args,
		"CNI_PATH="+args.Path,
	)
	program.Stdin = bytes.NewReader(args.StdinData)
	program.Stdout = &out
	program.Stderr = os.Stderr
	if err := program.Run(); err != nil {
		return nil, fmt.Errorf("IPAM plugin %s: %s: %w", d.plugin, verb, reported(out.Bytes(), err))
	}
	return out.Bytes(), nil
}

// reported is the error that a plugin printed, or err if it printed none.
func reported(out []byte, err error) error {
	var e types.Error
	if json.Unmarshal(out, &e) != nil || e.Msg == "" {
		return err
	}
	return &e
}
