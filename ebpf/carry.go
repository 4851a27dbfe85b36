package ebpf

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// carry copies the rows of a map to one in which rows have another layout, or which
// has another size: field by field, as they are called in C, so that flows outlive an
// upgrade. What the new layout does not have is left out, what the old one did not
// have is zero, and rows that are there already stay.
func carry(from, to *ebpf.Map, spec *ebpf.MapSpec) error {
	keys, values, err := movesOf(from, spec)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotAlike, err)
	}
	flags := ebpf.UpdateNoExist
	if from.Type() == ebpf.Array {
		flags = ebpf.UpdateAny // all rows are there always
	}
	return eachRow(from, func(key, value []byte) error {
		k, v := keys.move(key, to.KeySize()), values.move(value, to.ValueSize())
		err := to.Update(k, v, flags)
		if errors.Is(err, ebpf.ErrKeyExist) {
			return nil
		}
		return err
	})
}

// errNotAlike is that the rows of two maps cannot be compared.
var errNotAlike = errors.New("the old map has other rows")

// carries says of which maps rows can be carried over.
func carries(t ebpf.MapType) bool {
	return slices.Contains([]ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.Array}, t)
}

// moves are where the bytes of a row's fields go. Nil: where they were.
type moves []move

type move struct{ from, to, size uint32 }

func (m moves) move(row []byte, size uint32) []byte {
	if m == nil {
		return row
	}
	out := make([]byte, size)
	for _, f := range m {
		copy(out[f.to:f.to+f.size], row[f.from:])
	}
	return out
}

// movesOf compares the layout that a map was made with, which the kernel knows, with
// the one that is wanted.
func movesOf(m *ebpf.Map, spec *ebpf.MapSpec) (keys, values moves, err error) {
	had, err := typesOf(m)
	if err != nil {
		return nil, nil, err
	}
	if keys, err = compare(had, spec.Key, m.KeySize()); err != nil {
		return nil, nil, err
	}
	values, err = compare(had, spec.Value, m.ValueSize())
	return keys, values, err
}

// typesOf are those that a map was made with.
func typesOf(m *ebpf.Map) (*btf.Spec, error) {
	handle, err := m.Handle()
	if err != nil {
		return nil, err
	}
	defer func() { _ = handle.Close() }()
	return handle.Spec(nil)
}

// sameRows says whether the rows of a map of the right size are laid out as they are
// now, as far as the kernel knows that.
func sameRows(m *ebpf.Map, spec *ebpf.MapSpec) bool {
	if !carries(m.Type()) {
		return true
	}
	had, err := typesOf(m)
	return err != nil || (sameType(had, spec.Key) && sameType(had, spec.Value))
}

// sameType says whether a struct has the fields that it has now, in the same places.
func sameType(had *btf.Spec, now btf.Type) bool {
	if _, ok := btf.UnderlyingType(now).(*btf.Struct); !ok {
		return true // a number
	}
	var old *btf.Struct
	if err := had.TypeByName(now.TypeName(), &old); err != nil {
		return false
	}
	same := appendMoves(nil, old, now, move{})
	return slices.Equal(same, appendMoves(nil, old, old, move{})) && slices.Equal(same, appendMoves(nil, now, now, move{}))
}

// compare finds the moves from a type to the one that has its name now.
func compare(had *btf.Spec, want btf.Type, size uint32) (moves, error) {
	now, ok := btf.UnderlyingType(want).(*btf.Struct)
	if !ok {
		if n, err := btf.Sizeof(want); err != nil || uint32(n) != size {
			return nil, fmt.Errorf("%v has another size", want)
		}
		return nil, nil
	}
	var old *btf.Struct
	if err := had.TypeByName(now.Name, &old); err != nil {
		return nil, err
	}
	return appendMoves(moves{}, old, now, move{}), nil
}

// appendMoves adds those of a part of a row. at is where it was and where it goes.
func appendMoves(all moves, old, now btf.Type, at move) moves {
	old, now = btf.UnderlyingType(old), btf.UnderlyingType(now)
	switch n := now.(type) {
	case *btf.Struct:
		o, ok := old.(*btf.Struct)
		if !ok {
			return all
		}
		for _, field := range n.Members {
			i := slices.IndexFunc(o.Members, func(m btf.Member) bool { return m.Name == field.Name })
			if i >= 0 {
				all = appendMoves(all, o.Members[i].Type, field.Type, move{from: at.from + o.Members[i].Offset.Bytes(), to: at.to + field.Offset.Bytes()})
			}
		}
	case *btf.Array:
		o, ok := old.(*btf.Array)
		if !ok {
			return all
		}
		for i := range min(o.Nelems, n.Nelems) {
			all = appendMoves(all, o.Type, n.Type, move{from: at.from + i*sizeOf(o.Type), to: at.to + i*sizeOf(n.Type)})
		}
	default:
		at.size = min(sizeOf(old), sizeOf(now)) // a number that grew: its bytes are little-endian
		all = append(all, at)
	}
	return all
}

func sizeOf(t btf.Type) uint32 {
	n, err := btf.Sizeof(t)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// eachRow calls f with every row of a map: those of hash maps by few system calls.
func eachRow(m *ebpf.Map, f func(key, value []byte) error) error {
	if m.Type() == ebpf.LPMTrie || m.Type() == ebpf.Array {
		return eachRowAlone(m, f)
	}
	const rows = 4096
	keys, values := rowsOf(m.KeySize(), rows), rowsOf(m.ValueSize(), rows)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := m.BatchLookup(cursor, keys.Interface(), values.Interface(), nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read %s: %w", m, err)
		}
		for i := range n {
			if err := f(keys.Index(i).Slice(0, int(m.KeySize())).Bytes(), values.Index(i).Slice(0, int(m.ValueSize())).Bytes()); err != nil {
				return err
			}
		}
		if err != nil {
			return nil // that was the end
		}
	}
}

// rowsOf is a []([size]byte): what BatchLookup takes for rows of which only the size
// is known.
func rowsOf(size uint32, rows int) reflect.Value {
	row := reflect.ArrayOf(int(size), reflect.TypeFor[byte]())
	return reflect.MakeSlice(reflect.SliceOf(row), rows, rows)
}

func eachRowAlone(m *ebpf.Map, f func(key, value []byte) error) error {
	var key, value []byte
	rows := m.Iterate()
	for rows.Next(&key, &value) {
		if err := f(key, value); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", m, err)
	}
	return nil
}
