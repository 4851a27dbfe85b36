// Package step runs the steps of an operation and takes them back when one
// fails. It knows nothing of networks: what is done and undone comes from its
// callers, the cause of a failure goes back to them.
package step

import (
	"fmt"
	"slices"
)

// Func does one thing, completely or not at all, and returns how to take it
// back. A nil Undo says that there is nothing to take back, and one that comes
// with an error does not count.
type Func func() (Undo, error)

// Undo takes a step back. It succeeds if what it would remove is already gone.
type Undo func() error

// Run does the steps in order. If one fails, those before it are taken back,
// the last one first, and its error is returned (wrapped, with that of every
// undo that failed too). The Undo returned on success takes all of them back,
// so that a run of steps can itself be a step.
func Run(steps ...Func) (Undo, error) {
	var done undos
	for _, do := range steps {
		undo, err := do()
		if err != nil {
			return nil, done.after(err)
		}
		if undo != nil {
			done = append(done, undo)
		}
	}
	return done.back, nil
}

// undos are in the order of the steps they take back.
type undos []Undo

// back takes every step back, also after one could not be, and returns the
// errors of all.
func (u undos) back() error {
	var failed error
	for _, undo := range slices.Backward(u) {
		if err := undo(); err != nil {
			failed = join(failed, err)
		}
	}
	return failed
}

// after takes every step back because of cause.
func (u undos) after(cause error) error {
	if err := u.back(); err != nil {
		return fmt.Errorf("%w; undo: %w", cause, err)
	}
	return cause
}

// join is errors.Join on one line: a CNI error is one sentence for a log.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}
