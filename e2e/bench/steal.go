package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// times is what all processors of the machine did since it started, in clock
// ticks.
type times struct{ all, stolen uint64 }

func readTimes() (times, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return times{}, fmt.Errorf("read processor times: %w", err)
	}
	t, err := parseTimes(string(text))
	if err != nil {
		return times{}, fmt.Errorf("read processor times: /proc/stat: %w", err)
	}
	return t, nil
}

// parseTimes reads the first line of /proc/stat (proc_stat(5)): the word cpu, then
// user, nice, system, idle, iowait, irq, softirq, steal and two which user and
// nice hold already.
func parseTimes(text string) (times, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return times{}, errors.New("the first line has no steal time")
	}
	var t times
	for _, field := range fields[1:9] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return times{}, err
		}
		t.all += n
		t.stolen = n // the last one
	}
	return t, nil
}

// stealSince is the part of the time that the machine could not run, though it
// wanted to, because its hypervisor ran others.
func (t times) stealSince(before times) float64 {
	if t.all == before.all {
		return 0
	}
	return float64(t.stolen-before.stolen) / float64(t.all-before.all)
}
