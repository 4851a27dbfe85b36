package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

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
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("name lab %q: allowed are lower-case letters, digits and -, 31 at most", id)
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

// List returns the state of every lab on this machine that belongs to somebody.
func List() ([]State, error) {
	var live []State
	err := eachLab(func(_ string, s State, alive bool) error {
		if alive {
			live = append(live, s)
		}
		return nil
	})
	return live, err
}

// Sweep removes the labs that belong to nobody: those whose owner died before
// it could remove them, and those of an earlier boot.
func Sweep() error {
	return eachLab(func(id string, _ State, alive bool) error {
		if alive {
			return nil
		}
		return dirOf(id).remove()
	})
}

// Remove ends every process of a lab, whatever its state, and removes all that
// it owns. It is no error if there is no such lab.
func Remove(id string) error {
	unlock, err := lockRoot()
	if err != nil {
		return err
	}
	defer unlock()
	return dirOf(id).remove()
}

// eachLab calls f with every lab. A lab without a readable state was being
// claimed when its owner died: create and eachLab exclude each other.
func eachLab(f func(id string, s State, alive bool) error) error {
	unlock, err := lockRoot()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(Root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		s, err := readState(dirOf(e.Name()))
		errs = append(errs, f(e.Name(), s, err == nil && s.alive()))
	}
	return errors.Join(errs...)
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

// remove goes from what can hold a namespace to the namespaces' names. One
// failure does not keep it from the rest, and the directory, which makes the
// lab be found again, goes last.
func (d dir) remove() error {
	bound, err := filepath.Glob(d.netns("*"))
	if err != nil {
		return err
	}
	errs := []error{endProcesses(bound)}
	for _, path := range bound {
		errs = append(errs, unbind(path))
	}
	errs = append(errs, os.RemoveAll(string(d)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", filepath.Base(string(d)), err)
	}
	return nil
}
