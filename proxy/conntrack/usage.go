package conntrack

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Usage is how full the kernel's table of flows is.
type Usage struct {
	Flows, Limit int
	// Dropped are packets that were dropped because their flows could not be tracked,
	// most often for want of room, since the network namespace is there.
	Dropped uint64
}

// ReadUsage asks for the network namespace of the calling process. The error wraps
// fs.ErrNotExist if the kernel tracks nothing.
func ReadUsage() (Usage, error) {
	var u Usage
	var err error
	if u.Flows, err = limit("count").now(); err != nil {
		return u, fmt.Errorf("read how many flows are tracked: %w", err)
	}
	if u.Limit, err = limit("max").now(); err != nil {
		return u, fmt.Errorf("read how many flows may be tracked: %w", err)
	}
	text, err := os.ReadFile("/proc/self/net/stat/nf_conntrack")
	if err != nil {
		return u, fmt.Errorf("read how many packets connection tracking has dropped: %w", err)
	}
	u.Dropped = Dropped(string(text))
	return u, nil
}

// Dropped is Usage's, from the text of /proc/net/stat/nf_conntrack: below a line of
// names each processor has one of hexadecimal numbers.
func Dropped(stat string) (sum uint64) {
	names, rows, _ := strings.Cut(stat, "\n")
	at := slices.Index(strings.Fields(names), "drop")
	for row := range strings.Lines(rows) {
		fields := strings.Fields(row)
		if at < 0 || at >= len(fields) {
			continue
		}
		n, _ := strconv.ParseUint(fields[at], 16, 64)
		sum += n
	}
	return sum
}
