package watch

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// decodeStrict decodes a JSON object into a type of the API and refuses what the
// type does not have.
func decodeStrict[T any](raw []byte) (*T, field.ErrorList) {
	obj := new(T)
	strict, err := kjson.UnmarshalStrict(raw, obj)
	if err != nil {
		return nil, misfits(raw, func(raw []byte) error {
			strict, err := kjson.UnmarshalStrict(raw, new(T))
			return errors.Join(append(strict, err)...)
		})
	}
	var errs field.ErrorList
	for _, err := range strict {
		errs = append(errs, strictError(err))
	}
	return obj, errs
}

// strictError translates an unknown or a duplicate field, which the decoder tells
// apart by nothing but the text.
func strictError(err error) *field.Error {
	var at kjson.FieldError
	if !errors.As(err, &at) {
		return field.InternalError(nil, err)
	}
	if strings.HasPrefix(err.Error(), "duplicate") {
		return keyTwice(at.FieldPath())
	}
	return field.Forbidden(field.NewPath(at.FieldPath()), "unknown field")
}

func keyTwice(path string) *field.Error {
	return field.Forbidden(field.NewPath(path), "the key is there twice")
}

// misfits finds the values of a JSON object that decode refuses. The decoder
// itself tells only the first, and of that not the index in a list, or no path at
// all. So each value is offered to it alone, from the outside in.
func misfits(raw []byte, decode func([]byte) error) field.ErrorList {
	var root any
	err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &root)
	s := search{decode: decode}
	s.visit(nil, root, func(v any) any { return v })
	if len(s.found) == 0 {
		// Only all of it together is refused.
		err = errors.Join(err, decode(raw))
		s.found = field.ErrorList{{Type: field.ErrorTypeInvalid, BadValue: field.OmitValueType{}, Detail: err.Error()}}
	}
	return s.found
}

type search struct {
	decode func([]byte) error
	found  field.ErrorList
}

// visit searches the value v at path. Wrap builds an object around a value that
// has it at path and nothing else.
func (s *search) visit(path *field.Path, v any, wrap func(any) any) {
	if s.try(wrap(v)) == nil {
		return
	}
	if err := s.try(wrap(shell(v))); err != nil {
		s.found = append(s.found, misfit(path, v, err))
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			s.visit(path.Child(key), v[key], func(x any) any { return wrap(map[string]any{key: x}) })
		}
	case []any:
		for i, item := range v {
			s.visit(path.Index(i), item, func(x any) any { return wrap([]any{x}) })
		}
	}
}

func (s *search) try(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.decode(raw)
}

// shell is v without what it contains.
func shell(v any) any {
	switch v.(type) {
	case map[string]any:
		return map[string]any{}
	case []any:
		return []any{}
	}
	return v
}

// misfit says why v is refused at path.
func misfit(path *field.Path, v any, err error) *field.Error {
	if errors.As(err, new(kjson.FieldError)) {
		return field.Forbidden(path, "unknown field") // its own path has other indices
	}
	detail := err.Error()
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		detail = "must be " + nounOf(wrongType.Type)
	}
	switch v.(type) {
	case map[string]any:
		return field.Invalid(path, field.OmitValueType{}, detail+", not a mapping")
	case []any:
		return field.Invalid(path, field.OmitValueType{}, detail+", not a list")
	}
	return field.Invalid(path, v, detail)
}

// nounOf names what a JSON value has to be to fit a type.
func nounOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32, reflect.Int64:
		return "a whole number that fits in " + strings.TrimPrefix(t.Kind().String(), "int") + " bits"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	}
	return "of type " + t.String()
}
