package datapath

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/load"
)

// Schema names the form of Results. It changes when a field changes its meaning
// or goes; a field may come at any time.
const Schema = "fairlead-bench/1"

// Results is the document results.json.
type Results struct {
	Schema      string      `json:"schema"` // Schema
	Suite       string      `json:"suite"`
	Seed        uint64      `json:"seed"` // of the order in each block
	Started     time.Time   `json:"started"`
	Ended       time.Time   `json:"ended"`
	Interrupted bool        `json:"interrupted"` // what follows is not everything
	Machine     Machine     `json:"machine"`
	Candidates  []Candidate `json:"candidates"` // in the order that was asked for
	Services    []int       `json:"services"`
	Checks      []Check     `json:"checks"`
	Measures    []Measure   `json:"measures"`
	// CNI is that of fairlead-lab bench cni, if it was measured too.
	CNI *bench.CNIReport `json:"cni,omitempty"`
}

// Machine is where it was measured.
type Machine struct {
	CPUs        int        `json:"cpus"`
	CPU         string     `json:"cpu"` // its model
	MemoryBytes uint64     `json:"memoryBytes"`
	Kernel      string     `json:"kernel"`
	LoadBefore  [3]float64 `json:"loadBefore"` // of 1, 5 and 15 minutes, when the run began
	LoadAfter   [3]float64 `json:"loadAfter"`
}

// Candidate is something that was measured.
type Candidate struct {
	Name    string `json:"name"`
	Version string `json:"version"` // as it says itself
}

// Measure is one figure with one number of Services.
type Measure struct {
	ID       string `json:"id"`    // of what was done
	Title    string `json:"title"` // the same for people
	Figure   string `json:"figure"`
	Name     string `json:"name"` // the figure for people
	Unit     string `json:"unit"`
	Higher   bool   `json:"higherIsBetter"`
	Services int    `json:"services"`
	// Base is the candidate that ratios are of.
	Base      string `json:"base"`
	Blocks    int    `json:"blocks"`
	Discarded int    `json:"discarded"` // blocks with too much steal
	// Resolution is by how much of 1 the ratio of two baselines may differ, so that
	// a smaller difference means nothing; 0: it was not measured.
	Resolution float64 `json:"resolution"`
	Rows       []Row   `json:"rows"`
}

// Row is a candidate in a Measure.
type Row struct {
	Candidate string `json:"candidate"`
	Flaw
	Values []float64 `json:"values,omitempty"` // one for each block, in time
	// Median is over the blocks, in the measure's unit, Ratio over the blocks of the
	// value divided by the base's in the same block.
	Median *bench.Interval `json:"median,omitempty"`
	Ratio  *bench.Interval `json:"ratio,omitempty"`
}

// Flaw is why a candidate has no figures.
type Flaw struct {
	Wrong string `json:"wrong,omitempty"` // "": it has figures
	// Late: nothing wrong was seen, and it was not done in the time that the suite
	// waits.
	Late bool `json:"late,omitempty"`
}

func flawOf(err error) Flaw { return Flaw{err.Error(), errors.Is(err, load.ErrLate)} }

// Verdict is the flaw for people, "" if there is none.
func (f Flaw) Verdict() string {
	switch {
	case f.Late:
		return "too slow: " + f.Wrong
	case f.Wrong != "":
		return "wrong: " + f.Wrong
	}
	return ""
}

// Row finds a candidate's, the zero Row if it has none.
func (m Measure) Row(candidate string) Row {
	for _, r := range m.Rows {
		if r.Candidate == candidate {
			return r
		}
	}
	return Row{}
}

func newResults(ctx context.Context, o Options) (*Results, error) {
	r := &Results{Schema: Schema, Suite: o.Suite, Seed: o.Seed, Started: time.Now().UTC().Truncate(time.Second), Services: o.Services}
	var err error
	if r.Machine, err = thisMachine(); err != nil {
		return nil, err
	}
	for _, name := range o.Candidates {
		r.Candidates = append(r.Candidates, Candidate{name, versionOf(ctx, o, name)})
	}
	return r, nil
}

func (r *Results) finish() (err error) {
	r.Ended = time.Now().UTC().Truncate(time.Second)
	r.Machine.LoadAfter, err = loadAverage()
	return err
}

// add adds the figures of a kind.
func (r *Results) add(run *run, k kind, result bench.Result) {
	if result.Blocks == 0 {
		return
	}
	for _, f := range k.figures {
		m := Measure{
			ID: k.id, Title: k.title, Figure: f.key, Name: f.title, Unit: f.unit, Higher: f.higher,
			Services: run.services, Base: Direct, Blocks: result.Blocks, Discarded: result.Discarded,
		}
		if k.proxies {
			m.Base = r.firstProxy()
		}
		base := result.Series(m.Base, f.key).Medians()
		for _, c := range r.Candidates {
			if k.proxies && isDirect(c.Name) {
				continue
			}
			m.Rows = append(m.Rows, run.row(c.Name, k, result.Series(c.Name, f.key).Medians(), base))
		}
		if same := result.Series(twin, f.key).Medians(); len(same) == result.Blocks {
			i := bench.Ratio(same, base, run.random)
			m.Resolution = max(i.High-1, 1-i.Low)
		}
		r.Measures = append(r.Measures, m)
	}
}

// firstProxy is the first candidate that has one.
func (r *Results) firstProxy() string {
	i := slices.IndexFunc(r.Candidates, func(c Candidate) bool { return !isDirect(c.Name) })
	return r.Candidates[i].Name
}

func (r *run) row(candidate string, k kind, values, base []float64) Row {
	row := Row{Candidate: candidate}
	for _, w := range r.worlds {
		if w.candidate == candidate {
			row.Flaw = r.flaw(w, k)
		}
	}
	if row.Wrong != "" || len(values) == 0 {
		return row
	}
	row.Values = values
	row.Median = new(bench.Median(values, r.random))
	// Where nothing was lost there is nothing to divide by.
	if len(base) == len(values) && !slices.Contains(base, 0) {
		row.Ratio = new(bench.Ratio(values, base, r.random))
	}
	return row
}

func thisMachine() (Machine, error) {
	m := Machine{CPUs: runtime.NumCPU(), CPU: cpuModel()}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return m, fmt.Errorf("read the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uname.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("read the size of memory: %w", err)
	}
	m.MemoryBytes = info.Totalram * uint64(info.Unit)
	var err error
	m.LoadBefore, err = loadAverage()
	return m, err
}

// cpuModel is as /proc/cpuinfo names the first processor, "" where it does not.
func cpuModel() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func loadAverage() (load [3]float64, err error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return load, fmt.Errorf("read load: %w", err)
	}
	fields := strings.Fields(string(text))
	for i := range load {
		if load[i], err = strconv.ParseFloat(fields[i], 64); err != nil {
			return load, fmt.Errorf("read load: %w", err)
		}
	}
	return load, nil
}

// versionOf is what a candidate's programs say of themselves, "" if they do not.
func versionOf(ctx context.Context, o Options, candidate string) string {
	say := func(program string, args ...string) string {
		out, err := exec.CommandContext(ctx, program, args...).Output()
		if err != nil {
			return ""
		}
		first, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(first)
	}
	fairlead := say(programs{o.BinDir, o.KubeProxy}.fairlead(), "version")
	switch candidate {
	case Direct:
		return "no proxy, no netfilter"
	case KubeProxyIptables, KubeProxyNftables:
		version := say(o.KubeProxy, "--version")
		// Who builds Kubernetes as a module has this placeholder of git-archive(1).
		if info, err := buildinfo.ReadFile(o.KubeProxy); err == nil && strings.Contains(version, "$Format") {
			return "Kubernetes " + info.Main.Version
		}
		return version
	case EBPF:
		return fairlead
	}
	return fairlead + ", " + say(filepath.Base(candidate), "--version")
}
