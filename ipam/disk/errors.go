package disk

import (
	"errors"
	"fmt"
)

var (
	errEmpty   = errors.New("no bytes")
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

// refuse makes a damageError of what was found, once.
func refuse(path string, found error) error {
	if known := (*damageError)(nil); errors.As(found, &known) {
		return found
	}
	return &damageError{path: path, found: found}
}
