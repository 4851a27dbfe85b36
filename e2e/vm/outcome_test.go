package vm

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// A line of the console is SUITE|LINE of what go test -v says, or one of these.
const (
	of     = "|"
	begins = "=== SUITE"
	ends   = "=== ENDED "
)

var (
	failed  = regexp.MustCompile(`^\s*--- FAIL: (\S+)`)
	passed  = regexp.MustCompile(`^\s*--- PASS: `)
	skipped = regexp.MustCompile(`^\s*--- SKIP: (\S+)`)
	begun   = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)`) // whose lines follow
	logged  = regexp.MustCompile(`^\s+\S+\.go:\d+: `)
)

// outcome is what becomes of a suite. What it has may be read when it is over.
type outcome struct {
	suite string // its package
	over  chan struct{}
	lines []string

	began  time.Time // by our clock: tests set the machine's
	took   time.Duration
	passes int
	fails  []string          // what go test says of them
	skips  []string          // test, and why
	said   map[string]string // test → the last that it logged
	test   string            // whose lines come
	status string            // of go test; "": it did not end
}

type outcomes []*outcome

func newOutcomes(suites []suite) outcomes {
	var all outcomes
	for _, s := range suites {
		all = append(all, &outcome{suite: s.pkg, over: make(chan struct{}), said: map[string]string{}})
	}
	return all
}

// follow reads the console to its end. What is of no suite, as what a kernel says that
// dies, is kept for those that do not end.
func (all outcomes) follow(console <-chan string) {
	going := map[string]*outcome{}
	for _, o := range all {
		going[o.suite] = o
	}
	var others []string
	for line := range console {
		line = strings.TrimRight(line, "\r")
		suite, rest, _ := strings.Cut(line, of)
		o := going[suite]
		if o == nil {
			others = append(others, line)
			continue
		}
		if o.read(rest); o.status != "" {
			close(o.over)
			delete(going, o.suite)
		}
	}
	for _, o := range going {
		o.lines = append(o.lines, others...)
		close(o.over)
	}
}

// read takes in a line of the suite.
func (o *outcome) read(line string) {
	o.lines = append(o.lines, line)
	match := func(r *regexp.Regexp) string { return r.FindStringSubmatch(line)[1] }
	switch {
	case line == begins:
		o.began = time.Now()
	case strings.HasPrefix(line, ends):
		o.status, o.took = line[len(ends):], time.Since(o.began)
	case begun.MatchString(line):
		o.test = match(begun)
	case logged.MatchString(line):
		o.said[o.test] = strings.TrimSpace(line)
	case passed.MatchString(line):
		o.passes++
	case failed.MatchString(line):
		o.fails = append(o.fails, strings.TrimSpace(line))
	case skipped.MatchString(line):
		o.skips = append(o.skips, match(skipped)+": "+o.said[match(skipped)])
	}
}

// judge waits until it is over, and says what was skipped and why, and what failed.
func (o *outcome) judge(t *testing.T) {
	<-o.over
	for _, skip := range o.skips {
		t.Log("skipped ", skip)
	}
	for _, fail := range o.fails {
		t.Error(fail)
	}
	if failure := o.failure(); failure != "" {
		t.Errorf("%s; the console:\n%s", failure, strings.Join(o.lines, "\n"))
	}
}

// failure is "" if all is well.
func (o *outcome) failure() string {
	switch {
	case o.status == "":
		return "the machine ended before the suite did"
	case o.status != "0":
		return "failed, status " + o.status
	case len(o.fails) > 0 || o.passes == 0:
		return fmt.Sprintf("%d passed, %d failed, status %s", o.passes, len(o.fails), o.status)
	}
	return ""
}

// table has a line for each suite, and one for all, which took less than their sum.
func (all outcomes) table(took time.Duration) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(o *outcome, failure string) {
		fmt.Fprintf(w, "%s\t%s\t%d passed\t%d skipped\t%s\n", o.suite, o.took.Round(time.Second), o.passes, len(o.skips), failure)
	}
	sum := &outcome{suite: "all", took: took}
	for _, o := range all {
		row(o, o.failure())
		sum.passes, sum.skips = sum.passes+o.passes, append(sum.skips, o.skips...)
	}
	row(sum, "")
	_ = w.Flush()
	return text.String()
}
