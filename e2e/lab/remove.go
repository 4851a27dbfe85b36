package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fairlead/fairlead/e2e/cgroup"
)

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

// remove ends the lab's processes, which are found by its namespaces, then
// unbinds these, unmounts what the proxies have pinned, removes the cgroups, then
// deletes the directory, by which the lab is found. So after
// a failure it can be called again.
func (d dir) remove() error {
	bound, err := filepath.Glob(d.netns("*"))
	if err != nil {
		return err
	}
	if err := endProcesses(bound); err != nil {
		return fmt.Errorf("remove lab %s: %w", filepath.Base(string(d)), err)
	}
	var errs []error
	for _, path := range bound {
		errs = append(errs, unbind(path))
	}
	mounted, _ := filepath.Glob(d.bpf("*"))
	for _, path := range mounted {
		errs = append(errs, unbind(path))
	}
	errs = append(errs, cgroup.RemoveAll(d.cgroup("")), os.RemoveAll(string(d)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", filepath.Base(string(d)), err)
	}
	return nil
}
