// Package command runs programs of the host, such as iptables. None runs for longer
// than it may: one that hangs is ended, and so is all that it has started.
package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to be run once.
type Command struct {
	Name string // or path
	Args []string
	// Input writes what the program reads; nil: that is nothing.
	Input func(*bufio.Writer)
	// Within is how long it may take: many times what it takes on a machine that has
	// much else to do, since it is ended then wherever it is.
	Within time.Duration
	// Started is told the program's process number before it can have read any
	// input; nil: nobody is.
	Started func(pid int)
}

// ErrHung is the cause of an Error: the program had not ended in its time, and was.
var ErrHung = errors.New("it hung and was ended")

// Error is a program that failed.
type Error struct {
	Name   string
	Cause  error  // an *exec.ExitError, ErrHung, or why it could not be run
	Stderr string // what it said, without white space around it
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %v", e.Name, e.Cause)
	if e.Stderr != "" {
		text += ": " + strings.Join(strings.Fields(e.Stderr), " ")
	}
	return text
}

func (e *Error) Unwrap() error { return e.Cause }

// pipeSize is how much a pipe holds, see pipe(7).
const pipeSize = 64 << 10

// Text is the Input of a program that reads that.
func Text(text string) func(*bufio.Writer) {
	return func(w *bufio.Writer) { _, _ = w.WriteString(text) } // its Flush says the same
}

// graceForPipes is how long a program that has ended is waited for by whoever holds its
// output open: something that it started and that left its process group.
const graceForPipes = time.Second

// Run runs the program in the network namespace of the calling thread, and returns what
// it printed. An error is an *Error. The end of ctx ends the program too.
func (c Command) Run(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Within, fmt.Errorf("not within %s: %w", c.Within, ErrHung))
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Name, c.Args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, graceForPipes
	// A group of its own: host commands may be scripts around others.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := c.run(ctx, cmd)
	if err == nil {
		return stdout.Bytes(), nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrHung) {
		err = cause
	}
	return nil, &Error{Name: c.Name, Cause: err, Stderr: strings.TrimSpace(stderr.String())}
}

func (c Command) run(ctx context.Context, cmd *exec.Cmd) error {
	if c.Input == nil {
		if err := cmd.Start(); err != nil {
			return err
		}
		c.tell(cmd)
		return cmd.Wait()
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.tell(cmd)
	stop := context.AfterFunc(ctx, func() { _ = in.Close() }) // whoever else holds the pipe
	defer stop()
	w := bufio.NewWriterSize(in, pipeSize)
	c.Input(w)
	// A program that does not read to the end says itself why.
	_, _ = w.Flush(), in.Close()
	return cmd.Wait()
}

func (c Command) tell(cmd *exec.Cmd) {
	if c.Started != nil {
		c.Started(cmd.Process.Pid)
	}
}

// ExitCode is that of a program that ended with one, else -1.
func ExitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
