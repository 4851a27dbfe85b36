package cni_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni"
	"github.com/fairlead/fairlead/e2e/built"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

// patience is how long a test waits for what happens in a moment before it
// gives up.
const patience = 10 * time.Second

// network is a network configuration in the making.
type network map[string]any

// newNetwork is a network of one bridge whose pool is empty.
func newNetwork(t *testing.T, subnets ...string) network {
	t.Helper()
	var ranges [][]map[string]string
	for _, subnet := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": subnet}})
	}
	n := network{"cniVersion": "1.1.0", "name": "net", "type": "fairlead-cni"}
	if len(ranges) > 0 {
		n["ipam"] = network{"type": "fairlead-ipam", "dataDir": t.TempDir(), "ranges": ranges}
	}
	return n
}

// with is n with a key set to another value.
func (n network) with(key string, value any) network {
	n = maps.Clone(n)
	n[key] = value
	return n
}

// withIPAM is n with a key of its IPAM section set to another value.
func (n network) withIPAM(key string, value any) network {
	return n.with("ipam", n["ipam"].(network).with(key, value))
}

// pod is one interface of one pod, as a runtime names it.
type pod struct {
	id     string
	ns     *netns.NS
	netns  string // path
	ifName string
	args   string // CNI_ARGS
}

func newPod(t *testing.T, id string) pod {
	ns := netns.NewT(t)
	return pod{id: id, ns: ns, netns: ns.Path(), ifName: "eth0"}
}

// node is a host's network namespace and a way to run the plugin in it.
type node struct {
	ns   *netns.NS
	path string // CNI_PATH
	call func(n *node, verb string, p pod, conf []byte) ([]byte, error)
}

// newNode runs the plugin in the test's process.
func newNode(t *testing.T) *node {
	return &node{ns: netns.NewT(t), path: refplugins.Dir(t), call: inProcess}
}

// inProcess calls a verb as skel does.
func inProcess(n *node, verb string, p pod, conf []byte) ([]byte, error) {
	var out bytes.Buffer
	err := callVerb(n, verb, p, conf, &out)
	return out.Bytes(), err
}

func callVerb(n *node, verb string, p pod, conf []byte, out io.Writer) error {
	funcs := (&cni.Plugin{Stdout: out}).Funcs()
	verbs := map[string]func(*skel.CmdArgs) error{"ADD": funcs.Add, "DEL": funcs.Del, "CHECK": funcs.Check, "STATUS": funcs.Status, "GC": funcs.GC}
	return n.ns.Do(func() error {
		return verbs[verb](&skel.CmdArgs{
			ContainerID: p.id, Netns: p.netns, IfName: p.ifName, Args: p.args, Path: n.path, StdinData: conf,
		})
	})
}

// byExec runs a plugin program as a container runtime does.
func byExec(program string) func(*node, string, pod, []byte) ([]byte, error) {
	return func(n *node, verb string, p pod, conf []byte) ([]byte, error) {
		run := exec.Command(program)
		run.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+p.id, "CNI_NETNS="+p.netns,
			"CNI_IFNAME="+p.ifName, "CNI_ARGS="+p.args, "CNI_PATH="+n.path)
		run.Stdin = bytes.NewReader(conf)
		var out []byte
		err := n.ns.Do(func() (err error) { out, err = run.Output(); return err })
		if err == nil {
			return out, nil
		}
		var reported types.Error
		if json.Unmarshal(out, &reported) != nil {
			return nil, fmt.Errorf("%w, and printed no error but %q", err, out)
		}
		return nil, &reported
	}
}

func (n *node) add(p pod, conf network) (*types100.Result, error) {
	out, err := n.call(n, "ADD", p, marshal(conf))
	if err != nil {
		return nil, err
	}
	result, err := create.CreateFromBytes(out)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

func (n *node) addT(t *testing.T, p pod, conf network) *types100.Result {
	t.Helper()
	result, err := n.add(p, conf)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func (n *node) del(p pod, conf network) error {
	_, err := n.call(n, "DEL", p, marshal(conf))
	return err
}

func (n *node) delT(t *testing.T, p pod, conf network) {
	t.Helper()
	if err := n.del(p, conf); err != nil {
		t.Fatal(err)
	}
}

// check calls CHECK with the result of ADD, as libcni does.
func (n *node) check(p pod, conf network, result *types100.Result) error {
	_, err := n.call(n, "CHECK", p, marshal(conf.with("prevResult", result)))
	return err
}

func marshal(conf network) []byte {
	text, err := json.Marshal(conf)
	if err != nil {
		panic(err) // a test wrote something that is not JSON
	}
	return text
}

// code is the CNI error code of err.
func code(err error) uint {
	var coded *types.Error
	if !errors.As(err, &coded) {
		return 0
	}
	return coded.Code
}

// noLinkLocal has interfaces that are made later get no address by themselves:
// one comes a while after the interface does.
func noLinkLocal(t *testing.T, ns *netns.NS) {
	t.Helper()
	write(t, ns, "net/ipv6/conf/default/addr_gen_mode", "1")
}

// dump is what the kernel has in a namespace, as far as an ADD could change it.
// It leaves out queueing disciplines, because an interface that was ever up keeps
// its own, and the carrier, whose changes show a while later.
func dump(t *testing.T, ns *netns.NS) string {
	t.Helper()
	all := ns.RunT(t, "ip", "link") + ns.RunT(t, "ip", "addr") +
		ns.RunT(t, "ip", "route", "show", "table", "all") + ns.RunT(t, "ip", "-6", "route", "show", "table", "all")
	return passing.ReplaceAllString(all, "")
}

var passing = regexp.MustCompile(` qdisc \w+| state \w+|NO-CARRIER,|,LOWER_UP| linkdown`)

func compare(t *testing.T, what, before, after string) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

// linksOf are the names of the interfaces of one kind.
func linksOf(t *testing.T, ns *netns.NS, kind string) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(ns.RunT(t, "ip", "-oneline", "link", "show", "type", kind)) {
		name, _, _ := strings.Cut(strings.Fields(line)[1], "@") // index, name@peer:, …
		names = append(names, strings.TrimSuffix(name, ":"))
	}
	return names
}

// fairleadCNI builds the program, once for all tests, and returns the directory
// that has it under both of its names.
func fairleadCNI(t testing.TB) string {
	t.Helper()
	if err := buildProgram(); err != nil {
		t.Fatal(err)
	}
	return programDir
}

var (
	programDir   string // set by TestMain
	buildProgram = sync.OnceValue(func() error {
		program := filepath.Join(programDir, "fairlead-cni")
		if dir := os.Getenv(built.Variable); dir != "" {
			program = filepath.Join(dir, "fairlead-cni")
			return errors.Join(os.Symlink(program, filepath.Join(programDir, "fairlead-cni")), os.Symlink(program, filepath.Join(programDir, "fairlead-ipam")))
		}
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "github.com/fairlead/fairlead/cmd/fairlead-cni")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build fairlead-cni: %w: %s", err, out)
		}
		return os.Symlink(program, filepath.Join(programDir, "fairlead-ipam"))
	})
)

func TestMain(m *testing.M) {
	var err error
	if programDir, err = os.MkdirTemp("", "fairlead-cni-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(programDir)
	os.Exit(code)
}
