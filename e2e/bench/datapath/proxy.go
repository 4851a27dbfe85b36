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

// awaitSynced waits until the proxy says that the kernel was told once, of both
// families.
func (w *world) awaitSynced(ctx context.Context) error {
	for every := time.NewTicker(2 * time.Millisecond); ; {
		text, err := w.metrics(ctx)
		if err == nil && syncedFamilies(text) == 2 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the proxy has programmed all Services: %w", context.Cause(ctx))
		case <-every.C:
		}
	}
}

// syncedFamilies is of how many families metrics say when the kernel was last told
// of them. The name and the label are kube-proxy's.
func syncedFamilies(metrics string) int {
	families := 0
	for line := range strings.Lines(metrics) {
		when, ok := strings.CutPrefix(line, "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=")
		if _, value, _ := strings.Cut(when, " "); ok && strings.TrimSpace(value) != "0" {
			families++
		}
	}
	return families
}

// metrics are the proxy's, in Prometheus' text form.
func (w *world) metrics(ctx context.Context) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.dialOnNode}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return string(text), err
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
