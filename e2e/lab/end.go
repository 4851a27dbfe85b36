package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// How long processes get to end in order before they are killed, and how long
// the kernel gets to carry that out.
const (
	termGrace = 3 * time.Second
	killGrace = time.Minute
)

// endProcesses ends every process that is in one of the namespaces bound to
// paths, whoever started it.
func endProcesses(paths []string) error {
	namespaces := make(map[inode]bool)
	for _, path := range paths {
		if i, err := inodeOf(path); err == nil {
			namespaces[i] = true
		}
	}
	left := signalUntilGone(namespaces, unix.SIGTERM, termGrace)
	if left > 0 {
		left = signalUntilGone(namespaces, unix.SIGKILL, killGrace)
	}
	if left > 0 {
		return fmt.Errorf("end processes: %d do not die", left)
	}
	return nil
}

// inode identifies a namespace, or any file.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return inode{st.Dev, st.Ino}, err
}

// signalUntilGone sends the signal to all processes in the namespaces, waits for
// them to end, and looks again, because one of them may have started others. It
// returns how many are left after the grace.
func signalUntilGone(namespaces map[inode]bool, sig unix.Signal, grace time.Duration) int {
	deadline := time.Now().Add(grace)
	for {
		victims := processesIn(namespaces)
		if len(victims) == 0 || !time.Now().Before(deadline) {
			closeAll(victims)
			return len(victims)
		}
		for _, pidfd := range victims {
			_ = unix.PidfdSendSignal(pidfd, sig, nil, 0) // ESRCH: it has ended already
		}
		waitAll(victims, deadline)
		closeAll(victims)
	}
}

// processesIn returns a pidfd for each process whose main thread is in one of
// the namespaces. (So a lab's own process, of which only other threads go there,
// is never among them.)
func processesIn(namespaces map[inode]bool) []int {
	var found []int
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
		if err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		// Looked at only now that the pidfd is open: should the number have gone
		// to another process since, the signal reaches nobody.
		if i, err := inodeOf(link); err == nil && namespaces[i] {
			found = append(found, pidfd)
		} else {
			_ = unix.Close(pidfd)
		}
	}
	return found
}

// waitAll returns when every process has ended or the deadline is over. A pidfd
// becomes readable when its process ends.
func waitAll(pidfds []int, deadline time.Time) {
	for _, pidfd := range pidfds {
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for {
			left := time.Until(deadline)
			if left <= 0 {
				return
			}
			if _, err := unix.Poll(poll, int(left.Milliseconds())+1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
