package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// create claims a directory for a new lab.
func create(opts Options) (*Lab, error) {
	unlock, err := lockRoot()
	if err != nil {
		return nil, err
	}
	defer unlock()
	id := opts.ID
	if id == "" {
		id = randomID()
	}
	l := &Lab{ID: id, opts: opts, dir: dirOf(id), owner: processOf(os.Getpid())}
	if err := os.Mkdir(string(l.dir), 0o755); errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make lab %s: there is one of this name", id)
	} else if err != nil {
		return nil, err
	}
	if err := l.save(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(string(l.dir)))
	}
	return l, nil
}

func randomID() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // never fails, says its documentation
	return hex.EncodeToString(b)
}

// lockRoot waits until no other process makes or removes labs.
func lockRoot() (unlock func(), err error) {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	root, err := os.Open(Root)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(root.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", Root, err), root.Close())
	}
	return func() { _ = root.Close() }, nil
}
