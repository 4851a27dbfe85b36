package watch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"go.yaml.in/yaml/v3"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	kyaml "sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/proxy/service"
)

// content is what has been made of a document, or of a whole file.
type content struct {
	objects  []object
	problems []Problem
}

// object is one object that is right.
type object struct {
	Object
	line  int
	value any // *service.Service, *service.Slice, *service.Node, *IPPool, *IPBlock or *ServiceCIDR
}

// The kinds of objects, as manifests spell them.
const (
	kindList    = "List"
	kindService = "Service"
	kindSlice   = "EndpointSlice"
	kindNode    = "Node"
)

// kind is how the objects of a kind are decoded.
type kind struct {
	apiVersion string
	namespaced bool
	decode     func(raw []byte) (any, field.ErrorList)
}

// kinds has the kinds that are used, and the one that has objects of them.
var kinds = map[string]kind{
	kindList:        {apiVersion: "v1"},
	kindService:     {"v1", true, decodeAs(convertService)},
	kindSlice:       {"discovery.k8s.io/v1", true, decodeAs(convertSlice)},
	kindNode:        {"v1", false, decodeAs(convertNode)},
	kindServiceCIDR: {networking.SchemeGroupVersion.String(), false, decodeAs(convertServiceCIDR)},
	kindIPPool:      {fairleadVersion, false, decodeAs(convertIPPool)},
	kindIPBlock:     {fairleadVersion, false, decodeAs(convertIPBlock)},
}

func decodeAs[T, S any](convert func(*T) (*S, field.ErrorList)) func([]byte) (any, field.ErrorList) {
	return func(raw []byte) (any, field.ErrorList) {
		obj, errs := decodeStrict[T](raw)
		if len(errs) > 0 {
			return nil, errs
		}
		return convert(obj)
	}
}

// header is what all objects have. Metadata is decoded with its kind; before
// that only the names are wanted, if they can be had.
type header struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   json.RawMessage   `json:"metadata"`
	Items      []json.RawMessage `json:"items"`
}

// decode makes of a document what it can. Lines of the result are counted from
// the document's first.
//
// It is YAML as kubectl reads it (yes and on are booleans), by way of JSON. A
// second, slower look, which knows lines, is taken only if there is something to
// say about one.
func decode(text []byte) content {
	d := decoder{text: text, tree: sync.OnceValue(func() *yaml.Node { return parseTree(text) })}
	raw, err := d.toJSON()
	if err != nil {
		d.content.problems = []Problem{syntaxProblem(err, d.lines())}
		return d.content
	}
	d.object(raw, "")
	return d.content
}

type decoder struct {
	text    []byte
	tree    func() *yaml.Node // nil if the text has none
	twice   []string          // paths of keys that are there twice
	content content
}

func (d *decoder) toJSON() ([]byte, error) {
	if d.text[0] == '{' && json.Valid(d.text) {
		return d.text, nil
	}
	if err := endsAfterOne(d.text); err != nil {
		return nil, err
	}
	raw, err := kyaml.YAMLToJSONStrict(d.text)
	if err == nil || d.tree() == nil {
		return raw, err
	}
	// The text is YAML, so the error is one of a value. Keys that are there
	// twice cost their objects, not the whole document.
	d.twice = keysTwice(d.tree(), "")
	if len(d.twice) == 0 {
		return nil, err
	}
	return kyaml.YAMLToJSON(d.text)
}

// endsAfterOne refuses what follows the document in its text: the parser that
// makes JSON would not see it. A text that begins with a key has nothing after
// it, as its mapping goes on to the end; one in braces may.
func endsAfterOne(text []byte) error {
	if unicode.IsLetter(rune(text[0])) {
		return nil
	}
	stream := yaml.NewDecoder(bytes.NewReader(text))
	var first, second yaml.Node
	if err := stream.Decode(&first); err != nil {
		return nil // left to the parser that names lines better
	}
	err := stream.Decode(&second)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return fmt.Errorf("yaml: line %d: a second document", second.Line)
	}
	return err
}

func parseTree(text []byte) *yaml.Node {
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil || len(root.Content) == 0 {
		return nil
	}
	return root.Content[0]
}

// object decodes the object at prefix, which is what the paths of its fields
// begin with: nothing, or in a List items[3]. for example.
func (d *decoder) object(raw []byte, prefix string) {
	if bytes.Equal(raw, []byte("null")) {
		return
	}
	if raw[0] != '{' {
		d.problem(prefix, Problem{Message: "must be an object with apiVersion and kind"})
		return
	}
	var h header
	decodeHeader := func(raw []byte) error { return kjson.UnmarshalCaseSensitivePreserveInts(raw, &h) }
	if decodeHeader(raw) != nil {
		d.refuse(prefix, Object{}, misfits(raw, decodeHeader))
		return
	}
	k, used := kinds[h.Kind]
	switch {
	case h.Kind == "":
		d.refuse(prefix, Object{}, field.ErrorList{field.Required(field.NewPath("kind"), "")})
	case !used:
		d.problem(prefix, Problem{Field: "kind", Message: fmt.Sprintf("%s (%s) is not used", h.Kind, h.APIVersion), Note: true})
	case h.APIVersion != k.apiVersion:
		d.refuse(prefix, nameOf(h, k), field.ErrorList{
			field.NotSupported(field.NewPath("apiVersion"), h.APIVersion, []string{k.apiVersion}),
		})
	case h.Kind == kindList:
		d.list(h, prefix)
	default:
		d.known(raw, prefix, h, k)
	}
}

// list decodes the objects of a List.
func (d *decoder) list(h header, prefix string) {
	inItems := func(path string) bool { return strings.HasPrefix(path, "items[") }
	if errs := d.twiceIn(prefix, inItems); len(errs) > 0 {
		d.refuse(prefix, Object{Kind: kindList}, errs)
		return
	}
	for i, item := range h.Items {
		d.object(item, fmt.Sprintf("%sitems[%d].", prefix, i))
	}
}

// known decodes an object of a kind that is used.
func (d *decoder) known(raw []byte, prefix string, h header, k kind) {
	name := nameOf(h, k)
	nowhere := func(string) bool { return false }
	value, errs := k.decode(raw)
	if errs = append(errs, d.twiceIn(prefix, nowhere)...); len(errs) > 0 {
		d.refuse(prefix, name, errs)
		return
	}
	if label := unusedBy[h.Kind]; label != "" && hasLabel(h, label) {
		d.problem(prefix, Problem{Object: name, Field: labelPath(label), Message: "an object with this label is not used", Note: true})
		return
	}
	line := 1
	if prefix != "" {
		line = d.line(prefix)
	}
	d.content.objects = append(d.content.objects, object{Object: name, line: line, value: value})
}

// nameOf names an object, or as much of it as can be read.
func nameOf(h header, k kind) Object {
	var metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	}
	// A field of a wrong type is reported when all the object is decoded.
	_ = json.Unmarshal(h.Metadata, &metadata)
	name := service.Name{Name: metadata.Name}
	if k.namespaced {
		name.Namespace = namespaceOf(metadata.Namespace)
	}
	return Object{Kind: h.Kind, Name: name}
}

func hasLabel(h header, label string) bool {
	var metadata struct {
		Labels map[string]string `json:"labels"`
	}
	_ = json.Unmarshal(h.Metadata, &metadata) // the object has been decoded before
	_, ok := metadata.Labels[label]
	return ok
}

func labelPath(label string) string {
	return field.NewPath("metadata", "labels").Key(label).String()
}

// twiceIn returns the errors of the keys below prefix that are there twice,
// without those that skip says are another object's.
func (d *decoder) twiceIn(prefix string, skip func(path string) bool) field.ErrorList {
	var errs field.ErrorList
	for _, path := range d.twice {
		rest, below := strings.CutPrefix(path, prefix)
		if below && !skip(rest) {
			errs = append(errs, keyTwice(rest))
		}
	}
	return errs
}

// refuse leaves an object out because of errs.
func (d *decoder) refuse(prefix string, name Object, errs field.ErrorList) {
	for _, err := range errs {
		d.problem(prefix, Problem{Object: name, Field: err.Field, Message: err.ErrorBody()})
	}
}

// problem adds p, whose field is a field of the object at prefix.
func (d *decoder) problem(prefix string, p Problem) {
	p.Place.Line = d.line(prefix + p.Field)
	d.content.problems = append(d.content.problems, p)
}

func (d *decoder) line(path string) int {
	if d.tree() == nil {
		return 1
	}
	// YAML 1.1 has line breaks of which nobody else knows.
	return min(lineOf(d.tree(), path), d.lines())
}

func (d *decoder) lines() int {
	return bytes.Count(bytes.TrimRight(d.text, "\n"), []byte("\n")) + 1
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// syntaxProblem makes a problem of the error of a YAML parser that has read a
// text of that many lines.
func syntaxProblem(err error, lines int) Problem {
	line, message := 1, err.Error()
	if m := yamlError.FindStringSubmatch(message); m != nil {
		message = m[2]
		line, _ = strconv.Atoi(m[1]) // none is the first, which counts as 0
		if line == 0 || strings.HasPrefix(message, "did not find expected") {
			line++ // the parser, unlike the scanner, counts lines from 0
		}
	}
	return Problem{Place: Place{Line: min(line, lines)}, Message: "not valid YAML: " + message}
}
