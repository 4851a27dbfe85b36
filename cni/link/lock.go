package link

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam/flock"
)

// Lock is a kind of lock on a namespace.
type Lock int

const (
	// Shared is held by any number of processes together.
	Shared Lock = unix.LOCK_SH
	// Exclusive is held by one process alone.
	Exclusive Lock = unix.LOCK_EX
)

// lockDir is where the locks are. It is empty after a boot, and so is the list of
// namespaces.
const lockDir = "/run/fairlead"

// Lock waits for the lock, which lasts until Close, at most as long as limit; the
// error then wraps context.DeadlineExceeded. Asking again with another kind
// changes it, but not in one step: others may come in between, so what was learnt
// under the former lock is to be read again. After an error there is no lock.
//
// The lock is flock(2) on a file that is named after the namespace, so that two
// nodes in namespaces of one machine do not wait for each other. It is not on the
// namespace itself: that can be opened, and so locked, by every user. The file
// stays: removing it, others could hold a lock that nobody finds any more.
func (ns *NS) Lock(kind Lock, limit time.Duration) error {
	if ns.lock == nil {
		file, err := ns.openLock()
		if err != nil {
			return fmt.Errorf("open lock of network namespace: %w", err)
		}
		ns.lock = file
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := flock.Lock(ctx, ns.lock, int(kind)); err != nil {
		err = fmt.Errorf("lock network namespace with %s: %w", ns.lock.Name(), err)
		_ = ns.lock.Close()
		ns.lock = nil
		return err
	}
	return nil
}

func (ns *NS) openLock() (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(ns.file), &stat); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(lockDir, 0o700); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("netns-%d-%d.lock", stat.Dev, stat.Ino)
	return os.OpenFile(filepath.Join(lockDir, name), os.O_RDWR|os.O_CREATE, 0o600)
}
