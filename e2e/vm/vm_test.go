package vm

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/fairlead/fairlead/e2e/built"
)

var (
	version = flag.String("kernel", "", "version of Debian's kernel to boot, such as 6.1")
	copyTo  = flag.String("console", "", "file to which the machine's console is written too, for who waits")
	named   = flag.String("suite", "", "the suites to run, by their packages, such as proxy/bpf,cni")
)

// suite is tests of a package that a kernel must pass.
type suite struct {
	pkg   string // of the module
	run   string // as go test -run
	flags string // of its tests
}

// suites are what depends on the kernel, all together in less than ten minutes. The table
// of behaviours is tried with each protocol once, and with both families: what the rest
// would add does not depend on the kernel (docs/reliability.md).
var suites = []suite{
	{pkg: "ebpf", run: "."},
	{pkg: "proxy/bpf", run: "^TestBehaviour$/^(tcp4|udp6|sctp4)$|^TestPackets$/^(udp6|sctp4)$|TestRestart"},
	{pkg: "proxy/iptables", run: "TestBehaviour/nft/^(tcp4|sctp4)$|TestBehaviour/legacy/^udp6$|TestLocalnetIsGuarded|TestInvalid|TestProbe$"},
	{pkg: "cni", run: "TestAddResult|TestPodsReachEachOther|TestMacvlan(Result|Reaches|Check|Del)$|TestCheck$|TestDel$|TestGC$|TestSourceCheck$|TestMasquerade$|TestVLAN|TestPortIsolation"},
	{pkg: "cni/nft", run: "."},
	{pkg: "cni/node", run: "TestFullMesh|TestRepair|TestMembersChange|TestSizes"},
	{pkg: "e2e/sctp", run: "TestThroughPortTranslation|TestSeveralAddresses|TestEcho|TestParallelAssociations|TestAddresses|TestAcceptAfterEnd|OnTheWire"},
	{pkg: "e2e", run: "^TestDemo$/^2_nodes$|TestRoutedMesh|TestNewPort/clsact"},
	{pkg: "e2e/faults", run: "^TestMachine$", flags: "-own-machine"},
}

// The console tells by these lines where it is.
const (
	begins = "=== SUITE "
	ends   = "=== ENDED "
)

// TestKernel boots a kernel and runs the suites in it, each a test of its own
// here. make e2e-vm runs it.
func TestKernel(t *testing.T) {
	if *version == "" {
		t.Skip("no kernel is named by -kernel: make e2e-vm names one")
	}
	kernel, err := FindKernel(t.Context(), *version)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("kernel", kernel.Package)
	chosen := choose(*named)
	root := newRoot(t, kernel, chosen)
	console := boot(t, kernel, root)
	var all []*outcome
	for _, s := range chosen {
		o := &outcome{suite: s.pkg}
		all = append(all, o)
		t.Run(s.pkg, func(t *testing.T) { o.judge(t, console) })
	}
	t.Logf("in kernel %s:\n%s", kernel.Package, table(all))
}

// choose returns the suites of packages, all if none is named. Of a package that has none
// it is all tests.
func choose(pkgs string) []suite {
	if pkgs == "" {
		return suites
	}
	var chosen []suite
	for pkg := range strings.SplitSeq(pkgs, ",") {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.pkg == pkg })
		if i < 0 {
			chosen = append(chosen, suite{pkg: pkg, run: "."})
			continue
		}
		chosen = append(chosen, suites[i])
	}
	return chosen
}

// newRoot has the programs, the tests and a script that runs them.
func newRoot(t *testing.T, kernel Kernel, suites []suite) Root {
	t.Helper()
	root, err := NewRoot(t.Context(), filepath.Join(t.TempDir(), "root"), kernel)
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	build(t, "build", "-trimpath", "-o", programs, "./cmd/...") // as make build does
	for _, name := range []string{"fairlead", "fairlead-cni", "fairlead-lab"} {
		add(t, root, filepath.Join(programs, name), "/programs/"+name)
	}
	script := fmt.Sprintf("export %s=/programs\n", built.Variable)
	tests := t.TempDir() + "/"
	pkgs := []string{"-c", "-o", tests}
	for _, s := range suites {
		pkgs = append(pkgs, "./"+s.pkg)
	}
	build(t, "test", pkgs...)
	for _, s := range suites {
		dir := path.Join("/source", s.pkg)
		add(t, root, tests+path.Base(s.pkg)+".test", path.Join(dir, "test"))
		if err := root.addTree(filepath.Join("..", "..", s.pkg, "testdata"), path.Join(dir, "testdata")); err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("echo '%s%s'; cd %s; ./test -test.v -test.short -test.timeout 15m -test.run '%s' %s; echo '%s'%s $?\n", begins, s.pkg, dir, s.run, s.flags, ends, s.pkg)
	}
	if err := root.AddScript(script); err != nil {
		t.Fatal(err)
	}
	return root
}

// build runs the go command on this module.
func build(t *testing.T, verb string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{verb, "-ldflags=-s -w"}, args...)...)
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s %v: %v\n%s", verb, args, err, out)
	}
}

func add(t *testing.T, root Root, from, to string) {
	t.Helper()
	if err := root.AddFile(from, to); err != nil {
		t.Fatal(err)
	}
}

// boot starts the machine and returns the lines of its console, which ends with it.
func boot(t *testing.T, kernel Kernel, root Root) <-chan string {
	t.Helper()
	tee := io.Discard
	if *copyTo != "" {
		file, err := os.Create(*copyTo)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		tee = file
	}
	console := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		defer close(console)
		done <- Boot(ctx, kernel, root, func(line string) {
			fmt.Fprintln(tee, line)
			select {
			case console <- line:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	return console
}

var (
	failed  = regexp.MustCompile(`^\s*--- FAIL: (\S+)`)
	passed  = regexp.MustCompile(`^\s*--- PASS: `)
	skipped = regexp.MustCompile(`^\s*--- SKIP: (\S+)`)
	begun   = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)`) // whose lines follow
	logged  = regexp.MustCompile(`^\s+\S+\.go:\d+: `)
)

// outcome is what became of a suite.
type outcome struct {
	suite   string // its package
	took    time.Duration
	passes  int
	skips   []string // test, and why
	failure string   // "": there is none
}

// judge reads the console up to the end of the suite: what failed, what was passed
// over and why.
func (o *outcome) judge(t *testing.T, console <-chan string) {
	o.failure = "did not end"
	var all []string
	test, said := "", map[string]string{} // test → the last that it logged
	var began time.Time                   // by our clock: tests set the machine's
	for line := range console {
		line = strings.TrimRight(line, "\r")
		all = append(all, line)
		switch {
		case strings.HasSuffix(line, begins+o.suite): // the first after what the firmware says
			began = time.Now()
		case begun.MatchString(line):
			test = begun.FindStringSubmatch(line)[1]
		case logged.MatchString(line):
			said[test] = strings.TrimSpace(line)
		case passed.MatchString(line):
			o.passes++
		case failed.MatchString(line):
			t.Error(strings.TrimSpace(line))
		case skipped.MatchString(line):
			name := skipped.FindStringSubmatch(line)[1]
			o.skips = append(o.skips, name+": "+said[name])
		}
		status, ended := strings.CutPrefix(line, ends+o.suite+" ")
		if !ended {
			continue
		}
		o.took, o.failure = time.Since(began), ""
		for _, skip := range o.skips {
			t.Log("skipped ", skip)
		}
		if status != "0" || t.Failed() {
			o.failure = "failed, status " + status
			t.Errorf("%s; the console:\n%s", o.failure, strings.Join(all, "\n"))
		}
		return
	}
	t.Fatalf("the machine ended before the suite did; the console:\n%s", strings.Join(all, "\n"))
}

// table has a line for each suite, and one for all.
func table(all []*outcome) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(name string, o outcome) {
		fmt.Fprintf(w, "%s\t%s\t%d passed\t%d skipped\t%s\n", name, o.took.Round(time.Second), o.passes, len(o.skips), o.failure)
	}
	var sum outcome
	for _, o := range all {
		row(o.suite, *o)
		sum.took, sum.passes, sum.skips = sum.took+o.took, sum.passes+o.passes, append(sum.skips, o.skips...)
	}
	row("all", sum)
	_ = w.Flush()
	return text.String()
}
