package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// startProxies starts the program under test on each node.
func (l *Lab) startProxies() error {
	for _, n := range l.Nodes {
		if err := n.startProxy(l.opts); err != nil {
			return fmt.Errorf("start proxy of %s: %w", n.Name, err)
		}
	}
	return l.save()
}

// RestartProxy ends the proxy of a node by a signal and starts another one, in a mode
// and with more flags.
func (l *Lab) RestartProxy(n *Node, signal unix.Signal, mode string, flags ...string) error {
	if err := unix.Kill(n.proxy.PID, signal); err != nil {
		return fmt.Errorf("end proxy of %s: %w", n.Name, err)
	}
	<-n.proxy.done
	opts := l.opts
	opts.Mode = mode
	if err := n.startProxy(opts, flags...); err != nil {
		return fmt.Errorf("start proxy of %s: %w", n.Name, err)
	}
	return l.save()
}

func (n *Node) startProxy(opts Options, flags ...string) error {
	args := append([]string{"proxy", "--mode", opts.Mode, "--node-name", n.Name,
		"--inspect-socket", n.socket("proxy"),
		"--state-file", filepath.Join(n.dir.node(n.Name), "cluster.state"),
		// In every mode: in another than ebpf, what was left there is removed.
		"--bpf-root", n.dir.bpf(n.Name)}, slices.Concat(n.sources.Proxy, opts.ProxyFlags, flags)...)
	if n.cgroup != nil {
		args = append(args, "--cgroup-root", n.cgroup.Path)
	}
	cmd := exec.Command(filepath.Join(opts.BinDir, proxyProgram), args...)
	// Nodes share the file system but not their rules: one lock for all would
	// make them wait for each other.
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(n.dir.node(n.Name), "xtables.lock"))
	var err error
	n.proxy, err = start(n.ns, cmd, n.dir.log(n.Name, "proxy"), opts.Keep)
	return err
}

// ProxyProcess is the node's proxy, the zero Process if there is none.
func (n *Node) ProxyProcess() Process { return n.proxy.process() }

// ProxyLog is what the node's proxy has logged.
func (n *Node) ProxyLog() (string, error) {
	text, err := os.ReadFile(n.proxy.log)
	return string(text), err
}

// proxyEnded says that the proxy of a node runs no more, and what it said last.
func proxyEnded(node, how, log string) error {
	return fmt.Errorf("proxy of %s ended%s, its log ends:\n%s", node, how, logTail(log))
}

// ProxyErrors has an error for each proxy of the lab that runs no more.
func (s State) ProxyErrors() []error {
	var errs []error
	for _, n := range s.Nodes {
		if !n.Proxy.Running() {
			errs = append(errs, proxyEnded(n.Name, "", dirOf(s.ID).log(n.Name, "proxy")))
		}
	}
	return errs
}

// Guard returns a context that is cancelled when the proxy of some node ends;
// context.Cause then says which, and what its log says.
func (l *Lab) Guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, n := range l.Nodes {
		go func() {
			select {
			case <-n.proxy.done:
				cancel(proxyEnded(n.Name, fmt.Sprintf(" (%v)", n.proxy.err), n.proxy.log))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}
