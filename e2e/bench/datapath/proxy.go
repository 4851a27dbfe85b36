package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/e2e/bench/load"
	"github.com/fairlead/fairlead/e2e/lab"
)

// startProxy starts a proxy, in the proxy's cgroup, and returns when it did.
func (w *world) startProxy(cmd *exec.Cmd) (time.Duration, error) {
	cmd.Env = w.environment()
	leave, err := enter(cmd, w.proxyCgroup)
	if err != nil {
		return 0, err
	}
	defer leave()
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
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w within %s", load.ErrLate, limit))
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
// families. To be asked costs the proxy something too: the longer it takes, the less
// often it is asked.
func (w *world) awaitSynced(ctx context.Context) error {
	for began := time.Now(); ; {
		text, err := w.metrics(ctx)
		if err == nil && syncedFamilies(text) == 2 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the proxy has programmed all Services: %w", context.Cause(ctx))
		case <-time.After(max(2*time.Millisecond, time.Since(began)/100)):
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
	return w.node.Get(ctx, "http://"+metricsAddr+"/metrics")
}

// proxyTime is the processor time that the proxies of this world took so far, with
// all programs that they ran, if it is counted.
func (w *world) proxyTime() (used time.Duration, counted bool, err error) {
	if w.proxyCgroup == "" {
		return 0, false, nil
	}
	text, err := os.ReadFile(filepath.Join(w.proxyCgroup, "cpu.stat"))
	if err != nil {
		return 0, false, fmt.Errorf("read the proxy's processor time: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			microseconds, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(microseconds) * time.Microsecond, true, err
		}
	}
	return 0, false, nil
}

// mapMemory is what the maps that the proxy has pinned occupy, in bytes.
func (w *world) mapMemory() (float64, error) {
	sum := uint64(0)
	err := filepath.WalkDir(w.bpf, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil //nolint:nilerr // it is a program's, or a link's
		}
		defer func() { _ = m.Close() }()
		info, err := m.Info()
		if err != nil {
			return err
		}
		bytes, _ := info.Memlock()
		sum += bytes
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the memory of the proxy's maps: %w", err)
	}
	return float64(sum), nil
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
