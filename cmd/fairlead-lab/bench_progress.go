package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// benchProgress shows how far a run of bench is: in a terminal one line that
// lives, else a line for each thing that is begun.
type benchProgress struct {
	out   io.Writer
	bar   *progressbar.ProgressBar // nil: plain lines
	start time.Time
	last  string
}

func newBenchProgress(out io.Writer) *benchProgress {
	return &benchProgress{out: out, start: time.Now()}
}

func (b *benchProgress) update(p datapath.Progress) {
	what := p.What
	if p.Services > 0 && what != "" {
		what = fmt.Sprintf("%d Services: %s", p.Services, what)
	}
	if isTerminal(b.out) {
		b.show(p, what)
		return
	}
	for _, line := range []string{what, p.Note} {
		if line != "" && line != b.last {
			fmt.Fprintf(b.out, "%6.1f s  %3.0f %%  %s\n", time.Since(b.start).Seconds(), 100*p.Done.Seconds()/max(p.Total.Seconds(), 1), line)
		}
	}
	if what != "" {
		b.last = what
	}
}

func (b *benchProgress) show(p datapath.Progress, what string) {
	if b.bar == nil {
		b.bar = progressbar.NewOptions64(p.Total.Milliseconds(),
			progressbar.OptionSetWriter(b.out), progressbar.OptionSetWidth(20),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetTheme(progressbar.ThemeUnicode))
	}
	if p.Note != "" {
		_ = b.bar.Clear()
		fmt.Fprintln(b.out, p.Note)
	}
	if what != "" {
		b.bar.Describe(fmt.Sprintf("about %s left  %s", b.left(p), what))
	}
	_ = b.bar.Set64(p.Done.Milliseconds())
}

// left is about how long it takes yet: as was expected, or longer by as much as
// what is done took longer.
func (b *benchProgress) left(p datapath.Progress) time.Duration {
	slower := 1.0
	if p.Done > 0 {
		slower = max(1, time.Since(b.start).Seconds()/p.Done.Seconds())
	}
	return time.Duration(float64(p.Total-p.Done) * slower).Round(time.Second)
}

// close takes the living line away.
func (b *benchProgress) close() {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}
