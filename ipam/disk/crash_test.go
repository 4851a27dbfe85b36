package disk

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

// A crash test has this binary run again as workers, which add and delete on one
// store and say so, and kills them.
const workerEnv = "FAIRLEAD_TEST_WORKER" // DATADIR NAME SEED

func TestMain(m *testing.M) {
	if task := os.Getenv(workerEnv); task != "" {
		if err := work(task); err != nil {
			fmt.Println("error", err)
		}
		return
	}
	os.Exit(m.Run())
}

// work adds and deletes until it is killed. It says what it is about to do before
// it does it, and what it has done only then:
//
//	add NAME        added NAME ADDR
//	del NAME        deleted NAME
func work(task string) error {
	var dataDir, name string
	var seed uint64
	if _, err := fmt.Sscan(task, &dataDir, &name, &seed); err != nil {
		return err
	}
	s, err := New(dataDir, "crash")
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 0))
	var mine []string
	for i := 0; ; i++ {
		if len(mine) == 3 || len(mine) > 0 && random.IntN(2) == 0 {
			n := random.IntN(len(mine))
			fmt.Println("del", mine[n])
			if err := del(context.Background(), s, owner(mine[n])); err != nil {
				return err
			}
			fmt.Println("deleted", mine[n])
			mine = append(mine[:n], mine[n+1:]...)
			continue
		}
		o := fmt.Sprintf("%s-%d", name, i)
		fmt.Println("add", o)
		addr, err := add(context.Background(), s, crashSets, owner(o))
		if err != nil {
			return err
		}
		fmt.Println("added", o, addr)
		mine = append(mine, o)
	}
}

// crashSets has 253 addresses: more than killed workers leave held, and few
// enough to be given again and again.
var crashSets = []ipam.Set{{ipam.Range{Subnet: netip.MustParsePrefix("10.7.0.0/24"), First: netip.MustParseAddr("10.7.0.1"),
	Last: netip.MustParseAddr("10.7.0.254"), Gateway: netip.MustParseAddr("10.7.0.1")}}}

// journal is what workers said that they did.
type journal struct {
	held     map[string]netip.Addr // owner → address, acknowledged
	gone     []string              // owners whose release was acknowledged
	adding   []string              // owners being added when their worker died
	deleting map[string]netip.Addr // owners being released when their worker died → address
}

// runAndKill runs one worker, lets it say a number of lines, waits a moment more,
// and kills it.
func runAndKill(t *testing.T, task string, lines int, moment time.Duration) (said []string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+task)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return nil
	}
	all := bufio.NewReader(out)
	for range lines {
		line, err := all.ReadString('\n')
		if err != nil {
			break
		}
		said = append(said, line)
	}
	time.Sleep(moment) // the instant of the kill; nothing depends on it
	_ = cmd.Process.Kill()
	rest, err := io.ReadAll(all)
	if err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // its error is the kill
	for line := range strings.Lines(string(rest)) {
		said = append(said, line)
	}
	return said
}

// record adds what one worker said. A last word without its answer is what the
// kill interrupted.
func (j *journal) record(t *testing.T, said []string) {
	t.Helper()
	var pending string
	for _, line := range said {
		verb, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, addr, _ := strings.Cut(rest, " ")
		switch verb {
		case "add", "del":
			pending = verb + " " + name
			continue
		case "added":
			j.held[name] = netip.MustParseAddr(addr)
		case "deleted":
			delete(j.held, name)
			j.gone = append(j.gone, name)
		default:
			t.Errorf("a worker said %q", line)
		}
		pending = ""
	}
	verb, name, _ := strings.Cut(pending, " ")
	switch verb {
	case "add":
		j.adding = append(j.adding, name)
	case "del":
		j.deleting[name] = j.held[name]
		delete(j.held, name)
	}
}

// TestKilledProcesses kills workers at random instants, also while they make the
// file, and looks whether every word that was acknowledged holds.
func TestKilledProcesses(t *testing.T) {
	random := rand.New(rand.NewPCG(2026, 1))
	for round := range 10 {
		dataDir := t.TempDir() + "/data"
		j := &journal{held: map[string]netip.Addr{}, deleting: map[string]netip.Addr{}}
		for generation := range 3 {
			var mu sync.Mutex // guards j
			var all sync.WaitGroup
			for worker := range 4 {
				task := fmt.Sprintf("%s g%dw%d %d", dataDir, generation, worker, random.Uint64())
				lines, moment := 1+random.IntN(20), time.Duration(random.IntN(3000))*time.Microsecond
				all.Go(func() {
					said := runAndKill(t, task, lines, moment)
					mu.Lock()
					defer mu.Unlock()
					j.record(t, said)
				})
			}
			all.Wait()
		}
		t.Logf("killed in an ADD: %d, in a DEL: %d; held afterwards: %d", len(j.adding), len(j.deleting), len(j.held))
		j.verify(t, dataDir)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// verify compares the journal with the store, and then takes all that is left to
// see that nothing was lost.
func (j *journal) verify(t *testing.T, dataDir string) {
	t.Helper()
	s, err := New(dataDir, "crash")
	if err != nil {
		t.Fatal(err)
	}
	holders := map[netip.Addr]string{}
	hold := func(name string) netip.Addr {
		addrs := heldOrNone(t, s, owner(name))
		if len(addrs) == 0 {
			return netip.Addr{}
		}
		if other, twice := holders[addrs[0]]; twice {
			t.Errorf("%s is held by %s and by %s", addrs[0], other, name)
		}
		holders[addrs[0]] = name
		return addrs[0]
	}
	for name, addr := range j.held {
		if got := hold(name); got != addr {
			t.Errorf("%s holds %s, was told %s", name, got, addr)
		}
	}
	for name, addr := range j.deleting {
		if got := hold(name); got.IsValid() && got != addr {
			t.Errorf("%s, half deleted, holds %s, was told %s", name, got, addr)
		}
	}
	for _, name := range j.adding {
		hold(name)
	}
	for _, name := range j.gone {
		if got := hold(name); got.IsValid() {
			t.Errorf("%s holds %s after its release", name, got)
		}
	}
	for n := len(holders); n < 253; n++ {
		addr, err := add(t.Context(), s, crashSets, owner(fmt.Sprintf("rest-%d", n)))
		if err != nil {
			t.Fatalf("with %d of 253 held: %v", n, err)
		}
		if other, twice := holders[addr]; twice {
			t.Errorf("%s was given and is held by %s", addr, other)
		}
		holders[addr] = "the test"
	}
	if _, err := add(t.Context(), s, crashSets, owner("one too many")); err == nil {
		t.Error("254 of 253 addresses were given")
	}
}

// heldOrNone is held, on a store that no worker may have lived to make.
func heldOrNone(t *testing.T, s *Store, o ipam.Owner) []netip.Addr {
	t.Helper()
	if there, err := s.Exists(); err != nil || !there {
		return nil
	}
	return held(t, s, o)
}
