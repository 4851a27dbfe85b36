package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/e2e/netns"
)

// plugin is a CNI plugin on a node of its own.
type plugin struct {
	program string // path; IPAM plugins are searched beside it
	conf    []byte // the network's
	host    *netns.NS
}

// newPlugin has one bridge, which is the pods' gateway.
func newPlugin(p products, s Setup, dataDir string) (*plugin, error) {
	host, err := netns.New()
	if err != nil {
		return nil, err
	}
	conf, err := json.Marshal(network(p, s, dataDir))
	if err != nil {
		return nil, err
	}
	return &plugin{program: p.program(s.Plugin), conf: conf, host: host}, nil
}

func (p *plugin) close() { _ = p.host.Close() }

// cost is what a call takes, in milliseconds.
type cost struct {
	wall float64 // from before fork until the program has ended and its output is read
	cpu  float64 // of its processes, in user space and in the kernel
}

// call runs the program as a container runtime does, and returns what it printed.
func (p *plugin) call(ctx context.Context, verb, container, netnsPath string) (out []byte, c cost, err error) {
	stdin, err := filledPipe(p.conf)
	if err != nil {
		return nil, cost{}, err
	}
	defer func() { _ = stdin.Close() }()
	cmd := exec.CommandContext(ctx, p.program)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+container, "CNI_NETNS="+netnsPath,
		"CNI_IFNAME="+ifName, "CNI_PATH="+filepath.Dir(p.program))
	cmd.Stdin = stdin
	err = p.host.Do(func() (err error) {
		began := time.Now()
		out, err = cmd.Output()
		c.wall = milliseconds(time.Since(began))
		return err
	})
	if err != nil {
		return nil, cost{}, fmt.Errorf("%s %s: %w: %s", filepath.Base(p.program), verb, err, out)
	}
	// Of processes that it waited for, too: the IPAM plugin's.
	c.cpu = milliseconds(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
	return out, c, nil
}

// filledPipe returns the end to read of a pipe that holds a text, which must be
// shorter than a pipe is (64 KiB). A pipe that is filled while the program runs
// would end this one by SIGPIPE when a program does not read it, as for VERSION.
func filledPipe(text []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("fill pipe: %w", err), r.Close())
	}
	return r, nil
}

// verify attaches and detaches one pod and looks at it in between.
func (p *plugin) verify(ctx context.Context, s *sandbox) error {
	out, _, err := p.call(ctx, "ADD", "verify", s.ns.Path())
	if err != nil {
		return err
	}
	addrs, err := addresses(out)
	if err != nil {
		return err
	}
	if err := s.verify(addrs); err != nil {
		return err
	}
	if _, _, err := p.call(ctx, "DEL", "verify", s.ns.Path()); err != nil {
		return err
	}
	return s.verifyGone()
}

// addresses are those of a result.
func addresses(text []byte) ([]netip.Addr, error) {
	var result types100.Result
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, fmt.Errorf("decode result: %w", err)
	}
	if len(result.IPs) == 0 {
		return nil, fmt.Errorf("decode result: it has no address: %s", text)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("decode result: %v is no address", ip.Address.IP)
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}
