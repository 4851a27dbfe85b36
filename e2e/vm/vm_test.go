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
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/built"
)

var (
	version  = flag.String("kernel", "", "version of Debian's kernel to boot, such as 6.1")
	copyTo   = flag.String("console", "", "file to which the machine's console is written too, for who waits")
	oneSuite = flag.String("suite", "", "the one suite to run, by its package, such as proxy/bpf")
)

// suite is tests of a package that a kernel must pass.
type suite struct {
	pkg string // of the module
	run string // as go test -run
}

// suites are what depends on the kernel: all ways of packets, and all that is made
// in the kernel.
var suites = []suite{
	{pkg: "ebpf", run: "."},
	{pkg: "proxy/bpf", run: "TestBehaviour|TestPackets|TestRestart"},
	{pkg: "proxy/iptables", run: "TestBehaviour|TestSync|TestCleanup|TestLocalnet|TestInvalid|TestProbe$"},
	{pkg: "cni", run: "TestAddResult|TestPodsReachEachOther|TestMacvlan(Result|Reaches|Check|Del)$|TestCheck$|TestDel$|TestGC$|TestSourceCheck$|TestMasquerade$|TestVLAN|TestPortIsolation"},
	{pkg: "cni/nft", run: "."},
	{pkg: "cni/node", run: "TestFullMesh|TestRepair|TestMembersChange|TestSizes"},
	{pkg: "e2e/sctp", run: "."},
	{pkg: "e2e", run: "^TestDemo$|TestRoutedMesh"},
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
	chosen := suites
	if *oneSuite != "" {
		chosen = []suite{{pkg: *oneSuite, run: "."}}
		for _, s := range suites {
			if s.pkg == *oneSuite {
				chosen = []suite{s}
			}
		}
	}
	root := newRoot(t, kernel, chosen)
	console := boot(t, kernel, root)
	for _, s := range chosen {
		t.Run(s.pkg, func(t *testing.T) { s.judge(t, console) })
	}
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
	for _, s := range suites {
		test := filepath.Join(programs, "test")
		build(t, "test", "-c", "-o", test, "./"+s.pkg)
		dir := path.Join("/source", s.pkg)
		add(t, root, test, path.Join(dir, "test"))
		if err := root.addTree(filepath.Join("..", "..", s.pkg, "testdata"), path.Join(dir, "testdata")); err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("echo '%s%s'; cd %s; ./test -test.v -test.short -test.timeout 20m -test.run '%s'; echo '%s'%s $?\n", begins, s.pkg, dir, s.run, ends, s.pkg)
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
)

// judge reads the console up to the end of the suite: what failed, what was passed
// over and why.
func (s suite) judge(t *testing.T, console <-chan string) {
	var all, skips []string
	passes := 0
	for line := range console {
		line = strings.TrimRight(line, "\r")
		all = append(all, line)
		switch {
		case passed.MatchString(line):
			passes++
		case failed.MatchString(line):
			t.Error(strings.TrimSpace(line))
		case skipped.MatchString(line):
			// go test says why in the line before.
			skips = append(skips, skipped.FindStringSubmatch(line)[1]+": "+strings.TrimSpace(all[max(0, len(all)-2)]))
		}
		if status, ok := strings.CutPrefix(line, ends+s.pkg+" "); ok {
			for _, skip := range skips {
				t.Log("skipped ", skip)
			}
			t.Logf("%d passed, %d skipped, status %s", passes, len(skips), status)
			if status != "0" || t.Failed() {
				t.Errorf("the console:\n%s", strings.Join(all, "\n"))
			}
			return
		}
	}
	t.Fatalf("the machine ended before the suite did; the console:\n%s", strings.Join(all, "\n"))
}
