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
	"slices"
	"strings"
	"testing"
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
	alone bool   // beside no other suite
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
	{pkg: "e2e", run: "^TestDemo$/^2_nodes$|TestRoutedMesh|TestNewPort/clsact|TestLKSCTP"},
	{pkg: "e2e/faults", run: "^TestMachine$", flags: "-own-machine", alone: true},
}

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
	all := newOutcomes(chosen)
	began := time.Now()
	go all.follow(boot(t, kernel, root))
	for _, o := range all {
		t.Run(o.suite, o.judge)
	}
	t.Logf("in kernel %s:\n%s", kernel.Package, all.table(time.Since(began)))
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
	}
	if err := root.AddScript(script(suites)); err != nil {
		t.Fatal(err)
	}
	return root
}

// script runs the suites, as many at a time as the machine has processors, those that
// want to be alone at the end. Lines have their suite before them: the console is of all.
func script(suites []suite) string {
	var beside, alone, cases strings.Builder
	for _, s := range suites {
		list := &beside
		if s.alone {
			list = &alone
		}
		fmt.Fprintf(list, "%s\n", s.pkg)
		fmt.Fprintf(&cases, "%s) set -- '%s' %s ;;\n", s.pkg, s.run, s.flags)
	}
	return fmt.Sprintf(`echo # ends the firmware's line
cat > /run/suite <<'END'
suite=$1
case $suite in
%[1]sesac
cd /source/$suite
{
	echo '%[2]s'
	./test -test.v -test.short -test.timeout 15m -test.run "$@"
	echo '%[3]s'$?
} 2>&1 | awk -v suite=$suite '{ print suite "%[4]s" $0; fflush() }'
END
export %[5]s=/programs
xargs -r -n 1 -P %[6]d sh /run/suite <<'END'
%[7]sEND
xargs -r -n 1 sh /run/suite <<'END'
%[8]sEND
`, &cases, begins, ends, of, built.Variable, processors, &beside, &alone)
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
