package sctp

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// After the tests nothing of theirs may go on: no goroutine, no timer, no socket.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leftGoroutines(); code == 0 && left != "" {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n%.4000s", left)
		code = 1
	}
	os.Exit(code)
}

// leftGoroutines gives the goroutines some seconds to end, longer than any
// timer of the package, and returns the stacks of those that did not.
func leftGoroutines() string {
	var left []byte
	for end := time.Now().Add(2 * shutdownGuard); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all := make([]byte, 1<<20)
		all = all[:runtime.Stack(all, true)]
		left = nil
		for i, stack := range bytes.SplitAfter(all, []byte("\n\n")) {
			if i > 0 && bytes.Contains(stack, []byte("sctp")) { // the first is this one
				left = append(left, stack...)
			}
		}
		if left == nil {
			return ""
		}
	}
	return string(left)
}
