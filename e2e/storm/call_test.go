package storm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

const ifName = "eth0"

// errKilled is the end of a call whose kill was not too late.
var errKilled = errors.New("killed")

// call runs the plugin for a pod and returns what it printed.
func (n *node) call(verb string, p *pod, o order, conf map[string]any) ([]byte, error) {
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	var stdout bytes.Buffer
	cmd := exec.Command(n.program)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+p.id, "CNI_IFNAME="+ifName, "CNI_PATH=/")
	if p.ns != nil {
		cmd.Env = append(cmd.Env, "CNI_NETNS="+p.ns.Path())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, os.Stderr
	began := time.Now()
	if err := n.ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	if o.kill {
		stop := killAfter(cmd.Process, n.count.moment(verb, o.instant))
		defer stop()
	}
	err = cmd.Wait()
	killed := wasKilled(cmd.ProcessState)
	n.count.add(verb, o, killed, time.Since(began))
	switch {
	case killed && o.kill:
		return nil, errKilled
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, &stdout)
	}
	return stdout.Bytes(), nil
}

// killAfter kills a process after a while, unless stop comes first. After Wait
// Kill does nothing: no other process of the same number is hit.
func killAfter(process *os.Process, delay time.Duration) (stop func()) {
	if delay == 0 {
		_ = process.Kill()
		return func() {}
	}
	timer := time.AfterFunc(delay, func() { _ = process.Kill() })
	return func() { timer.Stop() }
}

func wasKilled(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// count is what became of calls.
type count struct {
	mu      sync.Mutex               // guards what follows
	typical map[string]time.Duration // verb → what calls that were not killed take
	kills   map[string]int           // verb → calls that were killed before their end
	late    int                      // calls whose kill came after their end
}

func (c *count) add(verb string, o order, killed bool, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.typical == nil {
		c.typical, c.kills = map[string]time.Duration{}, map[string]int{}
	}
	switch {
	case killed:
		c.kills[verb]++
	case o.kill:
		c.late++
	default:
		// The mean, which forgets: the machine may become busier or less so.
		c.typical[verb] += (took - c.typical[verb]) / 8
	}
}

// moment is a part of what such a call takes.
func (c *count) moment(verb string, part float64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(part * float64(c.typical[verb]))
}

func (c *count) log(t *testing.T) {
	t.Logf("killed in ADD: %d, in DEL: %d, too late: %d; a call that is let live takes %v",
		c.kills["ADD"], c.kills["DEL"], c.late, c.typical)
}

// check is that the storm was one.
func (c *count) check(t *testing.T) {
	if add, del := c.kills["ADD"], c.kills["DEL"]; add < *calls/20 || del < *calls/20 {
		t.Errorf("of %d calls, only %d ADDs and %d DELs were killed", *calls, add, del)
	}
}
