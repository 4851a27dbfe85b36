package lab

import (
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Program is a process that runs inside a namespace, apart from any Lab, and dies
// with this process.
type Program struct{ *child }

// StartProgram starts a command inside a namespace. Its standard error, and its
// standard output if the command has none, are added to the file log. What else
// cmd.SysProcAttr says is kept.
func StartProgram(ns *netns.NS, cmd *exec.Cmd, log string) (*Program, error) {
	c, err := start(ns, cmd, log, false)
	if err != nil {
		return nil, err
	}
	return &Program{c}, nil
}

// Done is closed when the process has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Said is the end of the process's log.
func (p *Program) Said() string { return logTail(p.log) }

// Kill ends the process by SIGKILL and waits until it is gone.
func (p *Program) Kill() {
	p.signal(unix.SIGKILL)
	<-p.done
}

// Stop ends the process in order, or by force if it does not within a grace.
func (p *Program) Stop() {
	p.signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(termGrace):
		p.Kill()
	}
}

func (p *Program) signal(sig unix.Signal) {
	if p.Running() { // else the number may be another's
		_ = unix.Kill(p.PID, sig)
	}
}

// ThisProcess names the calling process.
func ThisProcess() Process { return processOf(os.Getpid()) }
