package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/e2e/bench/load"
	"github.com/fairlead/fairlead/e2e/lab"
)

// startProxy starts the candidate's proxy and returns when it did.
func (w *world) startProxy() (time.Duration, error) {
	cmd := w.proxyCommand()
	cmd.Env = w.environment()
	began := load.Clock()
	proxy, err := lab.StartProgram(w.node, cmd, w.proxyLog())
	if err != nil {
		return 0, err
	}
	w.proxy = proxy
	return began, nil
}

// environment: worlds share a file system but no rules, so that one lock for all
// would make them wait for each other.
func (w *world) environment() []string {
	return append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(w.dir, "xtables.lock"))
}

func (w *world) proxyLog() string { return filepath.Join(w.dir, "proxy.log") }

func (w *world) stopProxy() {
	if w.proxy != nil {
		w.proxy.Stop()
		w.proxy = nil
	}
}

// killProxy ends the proxy as running out of memory would.
func (w *world) killProxy() {
	if w.proxy != nil {
		w.proxy.Kill()
		w.proxy = nil
	}
}

// cleanup stops the proxy and removes what it has programmed.
func (w *world) cleanup(ctx context.Context) error {
	if isDirect(w.candidate) {
		return nil
	}
	w.stopProxy()
	cmd := w.cleanupCommand()
	cmd.Env = w.environment()
	var out []byte
	err := w.node.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("remove what the proxy has programmed: %w: %s", err, out)
	}
	return nil
}

// guard is ctx, which ends when the proxy does and after a limit.
func (w *world) guard(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	ctx, cancel := context.WithCancelCause(ctx)
	proxy := w.proxy
	go func() {
		select {
		case <-proxy.Done():
			said := strings.Split(proxy.Said(), "\n")
			cancel(fmt.Errorf("the proxy ended: %s", said[len(said)-1]))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); stop() }
}

// awaitSynced waits until the proxy says that the kernel was told once.
func (w *world) awaitSynced(ctx context.Context) error {
	const last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
	for every := time.NewTicker(2 * time.Millisecond); ; {
		metrics, err := w.metrics(ctx)
		if err == nil && metrics[last] > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the proxy has programmed all Services: %w", context.Cause(ctx))
		case <-every.C:
		}
	}
}

// metrics are the proxy's, those without labels.
func (w *world) metrics(ctx context.Context) (map[string]float64, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.dialOnNode}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	metrics := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			metrics[name] = v
		}
	}
	return metrics, nil
}

func (w *world) dialOnNode(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := w.node.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// memory is what the proxy occupies, in bytes (proc_pid_status(5)): now, and at
// its peak.
func (w *world) memory() (resident, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.proxy.PID))
	if err != nil {
		return 0, 0, fmt.Errorf("read the proxy's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kB, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			resident = kB * 1024
		case "VmHWM:":
			peak = kB * 1024
		}
	}
	if resident == 0 || peak == 0 {
		return 0, 0, errors.New("read the proxy's memory: /proc/PID/status has no VmRSS and VmHWM")
	}
	return resident, peak, nil
}
