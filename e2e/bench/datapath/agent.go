package datapath

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/bench/load"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// agent is a process of package load in a world: it sends, or it serves.
type agent struct {
	name    string
	program *lab.Program
	orders  *os.File
	reports *bufio.Scanner
	out     *os.File
	mu      sync.Mutex // held from an order until its report
}

// podPort is where the pods serve.
const podPort = 8080

func (w *world) startAgents(ctx context.Context) error {
	var serve []string
	for name, addrs := range backendAddr {
		for _, a := range addrs {
			serve = append(serve, name+"="+netip.AddrPortFrom(a, podPort).String())
		}
	}
	for _, start := range []struct {
		as     **agent
		name   string
		ns     *netns.NS
		cgroup string
		args   []string
	}{
		{&w.server, "server", w.pods, w.cgroup, serve},
		{&w.pod, "pod", w.client, w.cgroup, nil},
		{&w.unhooked, "unhooked", w.client, "", nil},
		{&w.fromOutside, "outside", w.outside, "", nil},
	} {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), w.programs.lab(), append([]string{"bench", "load"}, start.args...)...)
		a, err := startAgent(start.ns, cmd, start.cgroup, filepath.Join(w.dir, start.name+".log"))
		if err != nil {
			return fmt.Errorf("start %s: %w", start.name, err)
		}
		a.name, *start.as, w.agents = start.name, a, append(w.agents, a)
		// The first report says that it is ready: a server listens then.
		if _, err := a.order(ctx, load.Order{What: load.OrderUsage}); err != nil {
			return err
		}
	}
	return nil
}

// startAgent runs a command inside a namespace and, unless it is "", a cgroup.
func startAgent(ns *netns.NS, cmd *exec.Cmd, cgroup, log string) (*agent, error) {
	ordersIn, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reports, reportsOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, ordersIn.Close(), orders.Close())
	}
	defer func() { _, _ = ordersIn.Close(), reportsOut.Close() }()
	cmd.Stdin, cmd.Stdout = ordersIn, reportsOut
	leave, err := enter(cmd, cgroup)
	if err != nil {
		return nil, errors.Join(err, orders.Close(), reports.Close())
	}
	defer leave()
	program, err := lab.StartProgram(ns, cmd, log)
	if err != nil {
		return nil, errors.Join(err, orders.Close(), reports.Close())
	}
	lines := bufio.NewScanner(reports)
	lines.Buffer(nil, 16<<20)
	return &agent{program: program, orders: orders, reports: lines, out: reports}, nil
}

// enter has a command begin in a cgroup, unless it is "". Once it has begun, leave
// is to be called.
func enter(cmd *exec.Cmd, cgroup string) (leave func(), err error) {
	if cgroup == "" {
		return func() {}, nil
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("enter cgroup: %w", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return func() { _ = dir.Close() }, nil
}

// order has the agent do something and returns its report. A report of an error
// is an error.
func (a *agent) order(ctx context.Context, o load.Order) (load.Report, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// An order ends by itself, but not at once.
	stop := context.AfterFunc(ctx, a.program.Kill)
	defer stop()
	if err := a.tell(o); err != nil {
		return load.Report{}, a.ended(ctx, err)
	}
	if !a.reports.Scan() {
		return load.Report{}, a.ended(ctx, errors.Join(a.reports.Err(), errEnded))
	}
	var r load.Report
	if err := json.Unmarshal(a.reports.Bytes(), &r); err != nil {
		return r, fmt.Errorf("read what %s reports: %w", a.name, err)
	}
	if r.Error != "" {
		return r, reported{r}
	}
	return r, nil
}

// reported is the error in a report.
type reported struct{ load.Report }

func (r reported) Error() string        { return r.Report.Error }
func (r reported) Is(target error) bool { return r.Late && target == load.ErrLate }

// tell does not wait for a report.
func (a *agent) tell(o load.Order) error { return json.NewEncoder(a.orders).Encode(o) }

func (a *agent) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("order %s: %w; its log ends:\n%s", a.name, err, a.program.Said())
}

// usage is the processor time of the agent so far.
func (a *agent) usage(ctx context.Context) (time.Duration, error) {
	r, err := a.order(ctx, load.Order{What: load.OrderUsage})
	return r.Usage, err
}

func (a *agent) close() {
	_ = a.orders.Close() // with its orders it ends
	select {
	case <-a.program.Done():
	case <-time.After(time.Second):
		a.program.Kill()
	}
	_ = a.out.Close()
}
