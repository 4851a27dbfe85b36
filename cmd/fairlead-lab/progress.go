package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/demo"
)

// progress prints a line per check: its name when it begins, what became of it
// when it ends. It is a demo.Observer.
type progress struct {
	out    io.Writer
	colour bool
	start  time.Time
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, colour: wantsColour(out), start: time.Now()}
}

// wantsColour says that out is a terminal whose user has not asked, see
// no-color.org, to be spared.
func wantsColour(out io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && isTerminal(out)
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

const nameWidth = 27 // of the longest name of a check

// printf does not fail: an output that was closed ends the demo by SIGPIPE.
func (p *progress) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format, args...)
}

// Begin implements demo.Observer.
func (p *progress) Begin(name string) {
	p.printf("%-*s  ", nameWidth, name)
}

// End implements demo.Observer.
func (p *progress) End(c demo.Check) {
	indent := "\n" + strings.Repeat(" ", nameWidth+8)
	p.printf("%s  %s\n", p.verdict(c.OK), strings.ReplaceAll(c.Detail, "\n", indent))
}

func (p *progress) verdict(ok bool) string {
	switch {
	case ok && p.colour:
		return "\x1b[32mok\x1b[0m  "
	case ok:
		return "ok  "
	case p.colour:
		return "\x1b[31mFAIL\x1b[0m"
	}
	return "FAIL"
}

// summary prints the last line.
func (p *progress) summary(report demo.Report) {
	failed := 0
	for _, c := range report.Checks {
		if !c.OK {
			failed++
		}
	}
	p.printf("\n%s  %d checks, %d failed, in %.1f s\n",
		p.verdict(report.OK), len(report.Checks), failed, time.Since(p.start).Seconds())
}
