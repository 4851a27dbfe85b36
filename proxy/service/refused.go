package service

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// RefusedError is a backend's word that it cannot serve some Services as they are
// in the Table, and why: the kernel does not take them. The others it can serve as
// soon as these are out of its way (see Resolver.Quarantine).
type RefusedError struct {
	Services map[Name]error
}

func (e *RefusedError) Error() string {
	var lines []string
	for _, name := range slices.SortedFunc(maps.Keys(e.Services), Name.Compare) {
		lines = append(lines, fmt.Sprintf("%s: %v", name, e.Services[name]))
	}
	return "the kernel does not take " + strings.Join(lines, "; ")
}

// Quarantine takes Services out of the Table until something changes of what they
// are made of, or until Release, and says what of the Table that changes.
func (r *Resolver) Quarantine(names ...Name) Change {
	dirty := map[Name]bool{}
	for _, name := range names {
		if _, ok := r.services[name]; ok && !r.quarantined[name] {
			r.quarantined[name], dirty[name] = true, true
		}
	}
	return r.replaceAll(dirty)
}

// Release takes all Services out of quarantine, to be tried again, and says what of the
// Table that changes.
func (r *Resolver) Release() Change {
	dirty := r.quarantined
	r.quarantined = map[Name]bool{}
	return r.replaceAll(dirty)
}

// Quarantined are the Services in quarantine, sorted.
func (r *Resolver) Quarantined() []Name {
	return slices.SortedFunc(maps.Keys(r.quarantined), Name.Compare)
}
