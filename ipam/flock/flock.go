// Package flock is flock(2), waited for with a context: the lock by which the
// processes of a node take turns on a file. It knows nothing of what is in the
// file.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Lock waits for the lock of an open file or directory, shared or exclusive
// (unix.LOCK_SH, LOCK_EX). Closing f gives it back, and so does the end of the
// process. The error wraps that of ctx when it is done first.
func Lock(ctx context.Context, f *os.File, how int) error {
	err := flock(f, how|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	// Nothing calls off a flock(2) that waits. When ctx is done first, this
	// goroutine goes on waiting, and the file, which the caller closes, stays
	// open until then; so the lock is given back the moment it is got.
	locked := make(chan error, 1)
	go func() { locked <- flock(f, how) }()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return fmt.Errorf("another process has it: %w", ctx.Err())
	}
}

// Unlock gives the lock back before f is closed.
func Unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

// flock keeps f open while the system call lasts, whoever closes it.
func flock(f *os.File, how int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locked error
	err = conn.Control(func(fd uintptr) {
		for {
			if locked = unix.Flock(int(fd), how); !errors.Is(locked, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, locked)
}
