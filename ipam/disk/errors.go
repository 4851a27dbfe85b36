package disk

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	errEmpty   = errors.New("no bytes")
	errInvalid = errors.New("invalid database")
	errForeign = errors.New("a database of another program's")
)

// damageError refuses a file that cannot be read.
type damageError struct {
	path  string
	found error
}

func (e *damageError) Error() string {
	return fmt.Sprintf("read store %s: it is damaged (%v), and it alone says which addresses this node's pods use: "+
		"drain the network's pods from this node, then remove the file", e.path, e.found)
}

// ofKernel says whether an error is the kernel's, which could not read or write.
func ofKernel(err error) bool {
	errno := syscall.Errno(0)
	return errors.As(err, &errno)
}

// refuse makes a damageError of what was found, once. What the kernel says is not the
// file's fault.
func refuse(path string, found error) error {
	if ofKernel(found) {
		return fmt.Errorf("read store %s: %w", path, found)
	}
	if known := (*damageError)(nil); errors.As(found, &known) {
		return found
	}
	return &damageError{path: path, found: found}
}
