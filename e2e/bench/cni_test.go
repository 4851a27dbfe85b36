package bench

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

var programs labtest.Programs

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }

func benchCNI(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs.Dir(t), "fairlead-lab"), append([]string{"bench", "cni"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// TestCNI measures as little as can be, and looks whether every case is there
// and has figures. What they are depends on the machine.
func TestCNI(t *testing.T) {
	before := leftovers(t)
	out, log, err := benchCNI(t, "--reference", refplugins.Dir(t), "--blocks", "2", "--held", "7", "--at-once", "3", "--max-steal", "100", "--seed", "5", "-o", "json")
	if err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	var r CNIReport
	if err := decoder.Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.Seed != 5 || r.Blocks != 2 || r.Discarded != 0 || r.StartMs <= 0 || r.Resolution <= 0 {
		t.Errorf("%+v", r)
	}
	var setups []Setup
	for _, times := range r.Setups {
		setups = append(setups, times.Setup)
		for _, p := range []Percentiles{times.Add, times.Del} {
			if p.P50Ms <= 0 || p.P90Ms < p.P50Ms || p.CPUMs <= 0 || (p.PerSecond > 0) != (times.AtOnce > 1) {
				t.Errorf("%s: %+v", times.Setup, p)
			}
		}
	}
	for _, plugin := range []string{Fairlead, Reference} {
		for _, want := range []Setup{
			{plugin, IPv4, 0, 1, false}, {plugin, IPv6, 0, 1, false}, {plugin, Dual, 0, 1, false},
			{plugin, IPv4, 0, 1, true}, {plugin, IPv4, 7, 1, false}, {plugin, IPv4, 0, 3, false},
		} {
			if !slices.Contains(setups, want) {
				t.Errorf("there is no %s", want)
			}
		}
	}
	for _, f := range r.Figures {
		if math.IsNaN(f.Estimate) || f.Low > f.Estimate || f.High < f.Estimate || f.Low == 0 {
			t.Errorf("%+v", f)
		}
	}
	if !strings.Contains(log, "block 2 of 2") || !strings.Contains(log, "ADD, the same against itself") {
		t.Errorf("no progress or no table in %s", log)
	}
	if after := leftovers(t); len(after) > len(before) {
		t.Errorf("left behind: %q", after)
	}
}

func leftovers(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/var/tmp/fairlead-bench-*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestCNIFails has a plugin that attaches nothing: it is not measured.
func TestCNIFails(t *testing.T) {
	dir := t.TempDir()
	const result = `{"cniVersion": "1.1.0", "ips": [{"address": "10.64.0.2/12"}]}`
	if err := os.WriteFile(filepath.Join(dir, "fairlead-cni"), []byte("#!/bin/sh\necho '"+result+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, log, err := benchCNI(t, "--bin-dir", dir)
	const want = "fairlead-lab: prepare fairlead IPv4, 0 held, 1 at once: find eth0 of the pod: Link not found\n"
	if err == nil || !strings.HasSuffix(log, want) {
		t.Errorf("%v: %s%s", err, out, log)
	}
}

func TestCNIUsage(t *testing.T) {
	empty := t.TempDir()
	tests := map[string]struct {
		args []string
		want string
	}{
		"output":     {[]string{"-o", "yaml"}, `print output as "yaml": allowed are text and json`},
		"blocks":     {[]string{"--blocks", "1"}, "measure 1 blocks: at least 2 are needed"},
		"at once":    {[]string{"--at-once", "16,1"}, "attach 1 pods at once: allowed are 2 to 1000"},
		"held":       {[]string{"--held", "0"}, "hold 0 addresses: allowed are 1 to 1000000"},
		"no program": {[]string{"--bin-dir", empty}, "find program fairlead-cni in " + empty + ": run make build first"},
		"no reference": {[]string{"--reference", empty},
			"find program bridge in " + empty + ": the reference plugins are at github.com/containernetworking/plugins"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, log, err := benchCNI(t, tt.args...)
			if err == nil || out != "" || log != "fairlead-lab: "+tt.want+"\n" {
				t.Errorf("%v: %s%s", err, out, log)
			}
		})
	}
}
