package watch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inotify is an inotify instance (inotify(7)). It is used directly because what
// matters here is IN_CLOSE_WRITE, the moment at which a writer is done with a
// file, and fsnotify does not pass that on.
type inotify struct {
	fd   int
	file *os.File // fd, in the care of the runtime's poller
}

// event is one inotify_event.
type event struct {
	watch int    // watch descriptor, -1 with IN_Q_OVERFLOW
	mask  uint32 // what happened
	name  string // to which entry of the directory; empty if to what is watched itself
}

func openInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		err = fmt.Errorf("%w (see fs.inotify.max_user_instances)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open inotify: %w", err)
	}
	return &inotify{fd: fd, file: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (n *inotify) close() error { return n.file.Close() }

// watch watches what path leads to; a symbolic link is followed. If that is
// watched already it returns the same watch descriptor.
func (n *inotify) watch(path string, mask uint32) (int, error) {
	wd, err := unix.InotifyAddWatch(n.fd, path, mask)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w (see fs.inotify.max_user_watches)", err)
	}
	if err != nil {
		return 0, &fs.PathError{Op: "watch", Path: path, Err: err}
	}
	return wd, nil
}

// unwatch ends a watch. The kernel may have ended it before, with its file.
func (n *inotify) unwatch(wd int) {
	_, _ = unix.InotifyRmWatch(n.fd, uint32(wd))
}

// wait returns the events that have queued up, as many as fit in its buffer. For
// the first one it waits; if the time comes or ctx ends before that, there is
// none.
func (n *inotify) wait(ctx context.Context, until time.Time) ([]event, error) {
	if err := n.file.SetReadDeadline(until); err != nil {
		return nil, fmt.Errorf("wait for inotify: %w", err)
	}
	// If this comes too late for ctx it cuts the next wait short, which
	// does no harm.
	stop := context.AfterFunc(ctx, func() { _ = n.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	buf := make([]byte, 64<<10)
	size, err := n.file.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read inotify: %w", err)
	}
	return parseEvents(buf[:size]), nil
}

func parseEvents(buf []byte) []event {
	var events []event
	for len(buf) >= unix.SizeofInotifyEvent {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:size], []byte{0})
		events = append(events, event{
			watch: int(int32(binary.NativeEndian.Uint32(buf))),
			mask:  binary.NativeEndian.Uint32(buf[4:]),
			name:  string(name),
		})
		buf = buf[size:]
	}
	return events
}
