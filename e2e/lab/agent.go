package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// AgentMetrics is where, inside a node, its fairlead node answers /metrics.
const AgentMetrics = "127.0.0.1:10254"

// connectTimeout ends a wait in vain.
const connectTimeout = 20 * time.Second

// startAgents starts fairlead node on each node, and waits until it says, as to
// every runtime, that pods can be made: by the network configuration.
func (l *Lab) startAgents(ctx context.Context) error {
	for _, n := range l.Nodes {
		if err := n.startAgent(l.opts); err != nil {
			return fmt.Errorf("start fairlead node of %s: %w", n.Name, err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("not within %s", connectTimeout))
	defer cancel()
	for _, n := range l.Nodes {
		if err := n.awaitNetwork(ctx); err != nil {
			return fmt.Errorf("connect %s: %w", n.Name, err)
		}
	}
	return nil
}

func (n *Node) startAgent(opts Options, flags ...string) error {
	// The plugin need not be installed: it is called where it was built.
	args := []string{"node", "--node-name", n.Name,
		"--cni-bin-dir", "", "--host-local-dir", "", "--cni-conf-dir", filepath.Dir(n.CNIConfig()), "--conf-template", n.confTemplate(),
		"--ipam-data-dir", n.IPAMData(), "--metrics-bind-address", AgentMetrics,
		"--inspect-socket", n.socket("node")}
	if opts.Macvlan {
		args = append(args, shimFlags...)
	}
	args = slices.Concat(args, n.sources.Agent, opts.AgentFlags, flags)
	cmd := exec.Command(filepath.Join(opts.BinDir, proxyProgram), args...)
	var err error
	n.agent, err = start(n.ns, cmd, n.dir.log(n.Name, "node"), opts.Keep)
	return err
}

// awaitNetwork waits until the network configuration is there.
func (n *Node) awaitNetwork(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(filepath.Dir(n.CNIConfig())); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(n.CNIConfig()); err == nil {
			return nil
		}
		select {
		case <-watcher.Events:
		case <-n.agent.done:
			return fmt.Errorf("fairlead node ended, its log ends:\n%s", logTail(n.agent.log))
		case <-ctx.Done():
			return fmt.Errorf("%w; the log of fairlead node ends:\n%s", context.Cause(ctx), logTail(n.agent.log))
		}
	}
}

// AgentLog is what the node's fairlead node has logged.
func (n *Node) AgentLog() (string, error) {
	text, err := os.ReadFile(n.agent.log)
	return string(text), err
}

// AgentProcess is the node's fairlead node, the zero Process if there is none.
func (n *Node) AgentProcess() Process { return n.agent.process() }

// RestartAgent kills the node's fairlead node, as running out of memory would,
// and starts another one, with more flags.
func (l *Lab) RestartAgent(n *Node, flags ...string) error {
	if err := unix.Kill(n.agent.PID, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill fairlead node of %s: %w", n.Name, err)
	}
	<-n.agent.done
	return n.startAgent(l.opts, flags...)
}
