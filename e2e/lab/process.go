package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Process names one process for good: numbers are used again, together with
// the start time and the boot they are not.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, as /proc/PID/stat has it
	Boot  string `json:"boot"`
}

// processOf is the process that has the number pid now, or the zero Process.
func processOf(pid int) Process {
	start, err := startTime(pid)
	if err != nil {
		return Process{}
	}
	return Process{PID: pid, Start: start, Boot: bootID()}
}

// Running says that the process has not ended.
func (p Process) Running() bool {
	return p.PID != 0 && p == processOf(p.PID)
}

// startTime is field 22 of /proc/PID/stat, see proc_pid_stat(5). Field 2, the
// command's name, is in parentheses and may hold anything, spaces and
// parentheses too. A process that has ended and was not waited for (state Z or
// X in field 3) is reported as gone.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on
	if len(fields) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: only %d fields", pid, len(fields))
	}
	if state := fields[0]; state == "Z" || state == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// child is a process of the lab, started by this process.
type child struct {
	Process
	log  string        // path of what it prints
	done chan struct{} // closed when it has ended
	err  error         // how it ended; to be read after done
}

func (c *child) process() Process {
	if c == nil {
		return Process{}
	}
	return c.Process
}

// start runs cmd inside the namespace, its standard error (and its standard
// output, if cmd has none) going to the file log. The process has a session of
// its own, so that a Ctrl-C at the terminal reaches the lab alone, which then
// ends its processes in order. Unless keep is set the process is killed when
// this one dies.
func start(ns *netns.NS, cmd *exec.Cmd, log string, keep bool) (*child, error) {
	out, err := createLog(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd.Stderr = out
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if !keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}

	c := &child{log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is sent when the thread that forked ends, not the process:
		// so the thread that enters the namespace stays and waits for the child.
		err := ns.Do(func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			c.Process = processOf(cmd.Process.Pid)
			started <- nil
			c.err = cmd.Wait()
			close(c.done)
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

func createLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// logTail is the end of a log file, for an error message; it says so if there
// is nothing.
func logTail(path string) string {
	const lines = 8
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "(its log is empty)"
	}
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
