// Package watch turns the objects of a cluster into the plain structs of
// proxy/service and tells what changes in them. It decides nothing: it checks
// that an object is what the API allows, fills in what the API says an absent
// field means, and leaves out the object that is wrong, alone.
//
// A source has one verb:
//
//	Next(ctx) (News, error)
//
// It waits until something differs from what it told before and returns the
// difference; the first call returns all there is, which may be nothing. A
// source narrates no events, it compares states. So a loop that is slow misses
// nothing: what happens between two calls is told by the next one, and of two
// changes of one object the last counts. A call that ends because of its ctx
// takes nothing with it. News belongs to the caller, but what the Update points
// to is shared and must not be changed.
//
// There are two: Dir reads the YAML and JSON files of a directory, Kube watches
// an API server. News goes to the loop in package proxy. convert.go, the way from
// an API object to a struct, knows neither files nor servers: it serves both.
package watch

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// News is what a source has learned since it was last asked.
type News struct {
	Update   service.Update
	IPPools  map[string]*IPPool  // by name; nil: it is gone
	IPBlocks map[string]*IPBlock // likewise
	// ServiceCIDRs by name; nil: it is gone.
	ServiceCIDRs map[string]*ServiceCIDR
	Problems     []Problem // not told before, in the order of their places
	Mended       []Problem // told before and gone
	// Since is when the first of it was heard of; zero: not known.
	Since time.Time
}

// Problem is one thing that is wrong with what a source has read. It is told
// once, until it is mended.
type Problem struct {
	Place  Place  // where it is; zero if its object says that
	Object Object // which object is left out; zero if that cannot be told
	// Field is the path of the field, as in spec.ports[0].port; empty if the
	// problem is with the whole object.
	Field   string
	Message string // has the value and what is allowed
	Also    Place  // where else, if two places contradict each other
	// Note says that nothing is wrong: what is there is just not used.
	Note bool
}

func (p Problem) String() string {
	parts := []string{p.Place.String(), p.Object.String(), p.Field, p.Message}
	known := slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	s := strings.Join(known, ": ")
	if p.Also != (Place{}) {
		s += " " + p.Also.String()
	}
	return s
}

// compare orders problems by place.
func (p Problem) compare(q Problem) int {
	return cmp.Or(
		cmp.Compare(p.Place.File, q.Place.File),
		cmp.Compare(p.Place.Line, q.Place.Line),
		cmp.Compare(p.Field, q.Field),
		cmp.Compare(p.Message, q.Message))
}

// compareObjects orders problems that have no place by object.
func (p Problem) compareObjects(q Problem) int {
	return cmp.Or(
		cmp.Compare(p.Object.Kind, q.Object.Kind),
		p.Object.Name.Compare(q.Object.Name),
		p.compare(q))
}

// withoutLines is what p stays if it merely moves because of an edit above it.
func (p Problem) withoutLines() Problem {
	p.Place.Line, p.Also.Line = 0, 0
	return p
}

// Place is a line of a file. Line 0 is the file as a whole.
type Place struct {
	File string
	Line int
}

func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Object names an object of the API.
type Object struct {
	Kind string
	Name service.Name // of a Node: without a namespace
}

// ServiceObject is the Service of that name.
func ServiceObject(name service.Name) Object { return Object{Kind: kindService, Name: name} }

func (o Object) String() string {
	switch {
	case o.Name.Name == "":
		return o.Kind
	case o.Name.Namespace == "":
		return o.Kind + " " + o.Name.Name
	}
	return o.Kind + " " + o.Name.String()
}
