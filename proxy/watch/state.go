package watch

import (
	"maps"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/fairlead/fairlead/proxy/service"
)

// state is all that a directory says at one time.
type state struct {
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.Slice
	nodes    map[string]*service.Node
	problems map[Problem]Problem // identity → the problem, at the first place it has
}

// merge makes one state of all files.
func (d *Dir) merge() *state {
	s := &state{
		services: map[service.Name]*service.Service{},
		slices:   map[service.Name]*service.Slice{},
		nodes:    map[string]*service.Node{},
		problems: map[Problem]Problem{},
	}
	s.report(d.trouble)
	places := map[Object]Place{}
	for _, name := range d.order() {
		f, path := d.files[name], filepath.Join(d.path, name)
		s.report(f.problems)
		for _, o := range f.objects {
			place := Place{File: path, Line: o.line}
			first, twice := places[o.Object]
			switch {
			case !twice:
				places[o.Object] = place
				s.add(o)
			case f.stale.IsZero():
				s.report([]Problem{{Place: place, Object: o.Object, Also: first,
					Message: "is there twice; this one is left out, the other one is at"}})
			}
		}
	}
	return s
}

// order returns the names of the files in the order in which their objects
// count. The stale ones come last: their objects serve as long as no other file
// has them, and an object that is on its way from one file to another is not
// there twice.
func (d *Dir) order() []string {
	names := slices.Sorted(maps.Keys(d.files))
	slices.SortStableFunc(names, func(a, b string) int {
		switch staleA, staleB := !d.files[a].stale.IsZero(), !d.files[b].stale.IsZero(); {
		case staleA == staleB:
			return 0
		case staleB:
			return -1
		}
		return 1
	})
	return names
}

func (s *state) add(o object) {
	switch value := o.value.(type) {
	case *service.Service:
		s.services[o.Name] = value
	case *service.Slice:
		s.slices[o.Name] = value
	case *service.Node:
		s.nodes[o.Name.Name] = value
	}
}

func (s *state) report(problems []Problem) {
	for _, p := range problems {
		if _, ok := s.problems[p.identity()]; !ok {
			s.problems[p.identity()] = p
		}
	}
}

// since returns what makes s of old.
func (s *state) since(old *state) News {
	return News{
		Update: service.Update{
			Services: changes(old.services, s.services),
			Slices:   changes(old.slices, s.slices),
			Nodes:    changes(old.nodes, s.nodes),
		},
		Problems: missing(old.problems, s.problems),
		Mended:   missing(s.problems, old.problems),
	}
}

func (n News) empty() bool {
	return n.Update.Empty() && len(n.Problems) == 0 && len(n.Mended) == 0
}

// changes returns what differs in now, with nil for what is gone.
func changes[K comparable, V any](old, now map[K]*V) map[K]*V {
	changed := map[K]*V{}
	for key, value := range now {
		// What comes from a document that has not changed is identical.
		before, ok := old[key]
		if !ok || before != value && !reflect.DeepEqual(before, value) {
			changed[key] = value
		}
	}
	for key := range old {
		if _, ok := now[key]; !ok {
			changed[key] = nil
		}
	}
	return changed
}

// missing returns the problems of all that are not in some.
func missing(some, all map[Problem]Problem) []Problem {
	var found []Problem
	for id, p := range all {
		if _, ok := some[id]; !ok {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, Problem.compare)
	return found
}
