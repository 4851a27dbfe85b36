package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// A short run: everything is right, and everything that was asked for is there.
func TestBench(t *testing.T) {
	out := filepath.Join(t.TempDir(), "new", "folder")
	args := []string{"bench", "--services", "1", "--blocks", "2", "--max-steal", "100", "--candidates", "direct,iptables-nft,ebpf", "--out", out}
	o := run(t, args...)
	if o.code != 0 {
		t.Fatalf("%+v", o)
	}
	results := filepath.Join(out, "results.json")
	r := readResults(t, results)
	for _, c := range r.Checks {
		if c.Wrong != "" {
			t.Errorf("check %+v", c)
		}
	}
	for _, m := range r.Measures {
		want := []string{"direct", "iptables-nft", "ebpf"}
		if m.Base != datapath.Direct {
			want = want[1:]
		}
		if m.Figure == "maps" {
			want = []string{"ebpf"}
		}
		var got []string
		for _, row := range m.Rows {
			if row.Wrong == "" && len(row.Values) == 2 && row.Median != nil {
				got = append(got, row.Candidate)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %s with %d Services: candidates (-want +got):\n%s", m.ID, m.Figure, m.Services, diff)
		}
	}
	for _, id := range []string{"tcp-new", "udp-new", "node-port-new", "no-service-new", "cold", "change", "changes", "restart", "update", "mode"} {
		if !slices.ContainsFunc(r.Measures, func(m datapath.Measure) bool { return m.ID == id && m.Services == 1 }) {
			t.Errorf("%s was not measured", id)
		}
	}
	for _, file := range []string{"report.html", "ratios.svg", "connection.svg", "connection.png", "cold.svg"} {
		if info, err := os.Stat(filepath.Join(out, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	if o := run(t, "bench", "compare", results, results); o.code != 0 || !strings.HasSuffix(o.stdout, "0 better, 0 worse\n") {
		t.Errorf("compared with itself: %+v", o)
	}
	worse := filepath.Join(out, "worse.json")
	r.Measures[0].Rows[0] = datapath.Row{Candidate: r.Measures[0].Rows[0].Candidate, Flaw: datapath.Flaw{Wrong: "no answer"}}
	writeJSON(t, worse, r)
	if o := run(t, "bench", "compare", results, worse); o.code != 1 || !strings.Contains(o.stdout, "no answer") {
		t.Errorf("compared with a candidate that is wrong: %+v", o)
	}
}

// readResults wants the documented form and nothing else.
func readResults(t *testing.T, path string) datapath.Results {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	var r datapath.Results
	if err := decoder.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Schema != datapath.Schema || r.Machine.CPUs == 0 || r.Machine.Kernel == "" || r.Seed == 0 || r.Started.IsZero() || r.Ended.Before(r.Started) {
		t.Errorf("results %+v", r)
	}
	return r
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestBenchUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	writeJSON(t, file, map[string]string{"schema": "other/1"})
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"candidate":    {[]string{"--candidates", "direct,ipvs"}, `measure candidate "ipvs": allowed are direct, iptables, iptables-legacy, iptables-nft, ebpf, kube-proxy-iptables, kube-proxy-nftables`},
		"no baseline":  {[]string{"--candidates", "iptables"}, "measure iptables: direct and one candidate more are needed, all else is compared with it"},
		"kube-proxy":   {[]string{"--candidates", "direct,kube-proxy-nftables"}, "measure kube-proxy-nftables: say where kube-proxy is, by --kube-proxy"},
		"services":     {[]string{"--services", "0"}, "measure with 0 Services: allowed are 1 to 100000"},
		"suite":        {[]string{"--suite", "slow"}, `run suite "slow": allowed are quick and full`},
		"blocks":       {[]string{"--blocks", "1"}, "measure 1 blocks: at least 2 are needed"},
		"reference":    {[]string{"--reference", "/opt/cni/bin"}, "compare with the reference plugins of --reference: they are measured with --cni only"},
		"word":         {[]string{"ebpf"}, `measure "ebpf": allowed are cni, routes and compare, or none`},
		"directory":    {[]string{"--out", filepath.Join(file, "x")}, "make directory for the results: mkdir " + file + ": not a directory"},
		"no programs":  {[]string{"--bin-dir", filepath.Dir(file)}, "find program fairlead in " + filepath.Dir(file) + ": run make build first"},
		"compare one":  {[]string{"compare", file}, "accepts 2 arg(s), received 1"},
		"other schema": {[]string{"compare", file, file}, "read results: " + file + `: schema "other/1": allowed is fairlead-bench/1`},
	} {
		t.Run(name, func(t *testing.T) {
			args := test.args
			if args[0] != "compare" && args[0] != "ebpf" && args[0] != "--out" {
				args = append(args, "--out", t.TempDir())
			}
			run(t, append([]string{"bench"}, args...)...).wantError(t, 2, "fairlead-lab: "+test.want)
		})
	}
	t.Run("root", func(t *testing.T) {
		cmd := exec.Command(labProgram(t), "bench", "--out", "/proc/nowhere")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		finish(t, cmd).wantError(t, 2, "fairlead-lab: make network namespaces: this needs root")
	})
}

// What the kernel lacks is one line, before anything is measured.
func TestBenchWithoutCgroups(t *testing.T) {
	out := t.TempDir()
	cmd := exec.Command("unshare", "--mount", "sh", "-ec",
		`for dir in $(awk '$3 == "cgroup2" { print $2 }' /proc/mounts); do umount -l "$dir"; done; exec "$@"`, "sh",
		labProgram(t), "bench", "--services", "1", "--candidates", "direct,ebpf", "--out", out)
	o := finish(t, cmd)
	const want = "no cgroup v2 file system is mounted\n"
	if o.code != 2 || !strings.HasPrefix(o.stderr, "fairlead-lab: start ebpf: ") || !strings.HasSuffix(o.stderr, want) || strings.Count(o.stderr, "\n") != 1 {
		t.Errorf("got status %d and %q, want 2 and one line that ends in %q", o.code, o.stderr, want)
	}
	if files, err := os.ReadDir(out); err != nil || len(files) > 0 {
		t.Errorf("left in %s: %v, %v", out, files, err)
	}
	wantNothingOf(t, cmd)
}

// benching is a run that has begun to measure.
func benching(t *testing.T, out string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(labProgram(t), "bench", "--services", "1", "--candidates", "direct,iptables", "--out", out)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.Contains(lines.Text(), "TCP connections for no Service") {
	}
	go func() {
		for lines.Scan() {
		}
	}()
	return cmd
}

func TestBenchInterrupted(t *testing.T) {
	out := t.TempDir()
	cmd := benching(t, out)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("exit status %d", code)
	}
	r := readResults(t, filepath.Join(out, "results.json"))
	if !r.Interrupted || len(r.Measures) == 0 {
		t.Errorf("interrupted %t, with %d measures", r.Interrupted, len(r.Measures))
	}
	wantNothingOf(t, cmd)
}

// After a SIGKILL the next run removes what is left.
func TestBenchKilled(t *testing.T) {
	cmd := benching(t, t.TempDir())
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := datapath.Sweep(); err != nil {
		t.Error(err)
	}
	wantNothingOf(t, cmd)
}

// wantNothingOf checks that nothing which was named after the run is left:
// directories, cgroups, BPF objects.
func wantNothingOf(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for _, dir := range []string{"/run/fairlead-bench/", "/sys/fs/cgroup/fairlead-bench-", "/sys/fs/cgroup/*/fairlead-bench-", "/sys/fs/bpf/fairlead-bench-"} {
		left, err := filepath.Glob(fmt.Sprintf("%s%d-*", dir, cmd.Process.Pid))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}
