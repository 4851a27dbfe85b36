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
	objects  map[Object]placed
	problems map[nth]Problem
	alike    map[Problem]int // problem without lines → how many there are
}

// nth tells apart problems that differ by nothing but their lines.
type nth struct {
	Problem // without lines
	n       int
}

// placed is the value of an object and where it stands.
type placed struct {
	value any
	place Place
	stale bool // so is the file
}

func newState() *state {
	return &state{
		objects:  map[Object]placed{},
		problems: map[nth]Problem{},
		alike:    map[Problem]int{},
	}
}

// merge makes one state of all files. An object that is on its way from one file
// to another is not there twice: one of the files is stale.
func (d *Dir) merge() *state {
	s := newState()
	if d.told != nil {
		s.objects = make(map[Object]placed, len(d.told.objects)) // it hardly ever differs
	}
	s.report(d.trouble...)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f, path := d.files[name], filepath.Join(d.path, name)
		s.report(f.problems...)
		for _, o := range f.objects {
			this := placed{o.value, Place{File: path, Line: o.line}, !f.stale.IsZero()}
			first, twice := s.objects[o.Object]
			switch {
			case !twice:
				s.objects[o.Object] = this
			case !first.stale && !this.stale:
				s.report(Problem{Place: this.place, Object: o.Object, Also: first.place,
					Message: "is there twice; this one is left out, the other one is at"})
			}
		}
	}
	return s
}

// report adds problems. Of alike notes one is enough.
func (s *state) report(problems ...Problem) {
	for _, p := range problems {
		key := p.withoutLines()
		n := s.alike[key]
		if n > 0 && p.Note {
			continue
		}
		s.alike[key]++
		s.problems[nth{key, n}] = p
	}
}

// since returns what makes s of old.
func (s *state) since(old *state) News {
	news := newNews()
	news.Problems = without(s.problems, old.problems)
	news.Mended = without(old.problems, s.problems)
	stayed := 0
	for key, now := range s.objects {
		before, ok := old.objects[key]
		if ok {
			stayed++
		}
		// The value of a document that has not changed is identical.
		if !ok || before.value != now.value && !reflect.DeepEqual(before.value, now.value) {
			news.put(key, now.value, false)
		}
	}
	if stayed < len(old.objects) {
		for key, before := range old.objects {
			if _, ok := s.objects[key]; !ok {
				news.put(key, before.value, true)
			}
		}
	}
	return news
}

func newNews() News {
	return News{
		Update: service.Update{
			Services: map[service.Name]*service.Service{},
			Slices:   map[service.Name]*service.Slice{},
			Nodes:    map[string]*service.Node{},
		},
		IPPools:      map[string]*IPPool{},
		IPBlocks:     map[string]*IPBlock{},
		ServiceCIDRs: map[string]*ServiceCIDR{},
	}
}

// put puts an object into an update, as one that is gone if it is.
func put(update service.Update, name service.Name, value any, gone bool) {
	switch value := value.(type) {
	case *service.Service:
		update.Services[name] = unless(gone, value)
	case *service.Slice:
		update.Slices[name] = unless(gone, value)
	case *service.Node:
		update.Nodes[name.Name] = unless(gone, value)
	}
}

func unless[V any](gone bool, value *V) *V {
	if gone {
		return nil
	}
	return value
}

// without returns the problems of all that are not in some.
func without(all, some map[nth]Problem) []Problem {
	var found []Problem
	for id, p := range all {
		if _, ok := some[id]; !ok {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, Problem.compare)
	return found
}

func (n News) empty() bool {
	return n.Update.Empty() && len(n.IPPools) == 0 && len(n.IPBlocks) == 0 && len(n.ServiceCIDRs) == 0 && len(n.Problems) == 0 && len(n.Mended) == 0
}
