package load

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Calm keeps the calling goroutine on one thread, on the last processor that this
// process may use, before all others there. Client and server do the same, and so
// take turns: whether two processes share a processor makes more of a difference
// than any proxy, and where the scheduler puts them is chance.
func Calm() error {
	runtime.LockOSThread()
	var may, last unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("read the processors of this process: %w", err)
	}
	cpu := 0
	for i := range len(may) * 64 {
		if may.IsSet(i) {
			cpu = i
		}
	}
	last.Set(cpu)
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		return fmt.Errorf("stay on processor %d: %w", cpu, err)
	}
	// Both are of the thread: setpriority(2), sched_setaffinity(2).
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("go before other programs: %w", err)
	}
	return nil
}
