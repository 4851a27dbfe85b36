package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
)

// pages reads those of a file as they lie there, and believes nothing that they say.
//
//	meta ─┬─▶ root ─┬─▶ bucket about, in the row itself
//	      │         └─▶ bucket rows ──▶ branches ──▶ leaves
//	      └─▶ list of free pages
//
// bbolt believes all of it: pages that lead in a circle keep it until there is no
// memory left, and what says that it has four thousand million pages is counted page by
// page. No guard ends that. So whatever bbolt is about to read is read here before.
//
// The format is bbolt's version 2, in the byte order of the machine.
type pages struct {
	file *os.File
	meta
	rows uint64 // root of the bucket; 0: it is a row of the root
	// known is what was read: a branch → its elements, a leaf → nil.
	known map[uint64][]element
}

// meta is what one of the first two pages says. Each transaction writes one of the two.
type meta struct {
	Magic, Version, PageSize, Flags                   uint32
	Root, Sequence, FreeList, Count, Transaction, Sum uint64
}

const (
	magic   = 0xED0CDAED
	version = 2

	headerSize  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // of a leaf: flags 4, pos 4, key 4, value 4; of a branch: pos 4, key 4, page 8
	bucketSize  = 16 // root 8, sequence 8; then, if root is 0, the bucket's one page
	metaSize    = 64

	isBranch   = 1
	isLeaf     = 2
	isFreeList = 16
	isBucket   = 1 // of an element

	countBehind = 0xffff // of a list of free pages: its length is the first number of it
)

var order = binary.NativeEndian

// header begins a page. What does not fit in it goes on in so many more: overflow.
type header struct {
	id           uint64
	flags, count uint16
	overflow     uint32
}

// element is what a page leads to, or has.
type element struct {
	key    []byte // of a branch: the least of page
	page   uint64
	value  []byte
	bucket bool
}

// openPages reads what every transaction does.
func openPages(f *os.File) (*pages, error) {
	m, err := latest(f)
	if err != nil {
		return nil, err
	}
	p := &pages{file: f, meta: m, known: map[uint64][]element{}}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size()/int64(m.PageSize) < int64(m.Count) {
		return nil, fmt.Errorf("%d of its %d pages of %d bytes are left", info.Size()/int64(m.PageSize), m.Count, m.PageSize)
	}
	if _, _, err := p.free(); err != nil {
		return nil, err
	}
	if _, err := p.bucket(about, schema); err != nil {
		return nil, err
	}
	p.rows, err = p.bucket(rows, nil)
	return p, err
}

// latest is what the last transaction wrote.
func latest(f *os.File) (m meta, err error) {
	size := int64(os.Getpagesize())
	for i := range int64(2) {
		var text [metaSize]byte
		if _, err := f.ReadAt(text[:], i*size+headerSize); err != nil {
			continue // shorter than that
		}
		var found meta
		if _, err := binary.Decode(text[:], order, &found); err != nil {
			return m, err
		}
		sum := fnv.New64a()
		sum.Write(text[:metaSize-8])
		if found.Magic != magic || found.Version != version || found.Sum != sum.Sum64() {
			continue
		}
		size = int64(found.PageSize)
		if m.Magic == 0 || found.Transaction > m.Transaction {
			m = found
		}
	}
	if m.Magic == 0 {
		return m, errInvalid
	}
	return m, nil
}

// reach reads all that bbolt does when it looks for a key of the rows or changes it.
func (p *pages) reach(key []byte) error {
	if p.rows == 0 {
		return nil
	}
	return p.descend(p.rows, key, nil)
}

// descend reads the pages from one down to the leaf of a key, and beside each its
// neighbours, with which bbolt goes on behind the end of a leaf, or merges it. Of those
// it reads the way to the first leaf: no key.
func (p *pages) descend(id uint64, key []byte, above []uint64) error {
	if slices.Contains(above, id) {
		return fmt.Errorf("page %d leads to itself", id)
	}
	elements, known := p.known[id]
	if !known {
		h, all, err := p.elements(id)
		if err != nil {
			return err
		}
		if h.flags == isBranch {
			elements = all
		}
		p.known[id] = elements
	}
	if elements == nil {
		return nil
	}
	at := find(elements, key)
	for i := max(0, at-1); i < min(at+2, len(elements)); i++ {
		var err error
		switch {
		case i == at:
			err = p.descend(elements[i].page, key, append(above, id))
		case key != nil:
			err = p.descend(elements[i].page, nil, append(above, id))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find is where a key is, or the page that it would be in.
func find(elements []element, key []byte) int {
	at, exact := slices.BinarySearchFunc(elements, key, func(e element, key []byte) int { return bytes.Compare(e.key, key) })
	if !exact && at > 0 {
		at--
	}
	return at
}

// bucket reads what leads to a key of a bucket, and returns the bucket's root; 0 if its
// page is in the row that names it, or if there is none.
func (p *pages) bucket(name, key []byte) (root uint64, err error) {
	if err := p.descend(p.Root, name, nil); err != nil {
		return 0, err
	}
	id := p.Root
	for p.known[id] != nil {
		id = p.known[id][find(p.known[id], name)].page
	}
	_, elements, err := p.elements(id)
	if err != nil {
		return 0, err
	}
	for _, e := range elements {
		if !e.bucket || !bytes.Equal(e.key, name) {
			continue
		}
		if len(e.value) < bucketSize {
			return 0, fmt.Errorf("bucket %s has %d bytes", name, len(e.value))
		}
		if root := order.Uint64(e.value); root != 0 {
			return root, p.descend(root, key, nil)
		}
		return 0, inline(name, e.value[bucketSize:])
	}
	return 0, nil
}

// inline refuses a page inside a row that is no leaf.
func inline(name, page []byte) error {
	if len(page) < headerSize {
		return fmt.Errorf("the page of bucket %s has %d bytes", name, len(page))
	}
	h := headerOf(page)
	if h.flags != isLeaf {
		return fmt.Errorf("the page of bucket %s has flags %#x", name, h.flags)
	}
	if _, err := h.elements(page); err != nil {
		return fmt.Errorf("bucket %s: %w", name, err)
	}
	return nil
}

// elements reads a branch or a leaf.
func (p *pages) elements(id uint64) (header, []element, error) {
	h, data, err := p.read(id)
	if err != nil {
		return h, nil, err
	}
	if h.flags != isBranch && h.flags != isLeaf {
		return h, nil, fmt.Errorf("page %d is led to, and has flags %#x", id, h.flags)
	}
	all, err := h.elements(data)
	return h, all, err
}

// free reads the list of free pages.
func (p *pages) free() (header, []uint64, error) {
	h, data, err := p.read(p.FreeList)
	if err != nil {
		return h, nil, err
	}
	if h.flags != isFreeList {
		return h, nil, fmt.Errorf("page %d should be the list of free pages, and has flags %#x", h.id, h.flags)
	}
	list, count := data[headerSize:], uint64(h.count)
	if count == countBehind {
		count, list = order.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return h, nil, fmt.Errorf("page %d lists %d free pages and has room for %d", h.id, count, len(list)/8)
	}
	free := make([]uint64, count)
	for i := range free {
		free[i] = order.Uint64(list[8*i:])
		if free[i] < 2 || free[i] >= p.Count || i > 0 && free[i] <= free[i-1] {
			return h, nil, fmt.Errorf("page %d is listed as free, at place %d, in a file of %d pages", free[i], i, p.Count)
		}
	}
	return h, free, nil
}

// read reads a page and those that it goes on in.
func (p *pages) read(id uint64) (h header, data []byte, err error) {
	if id < 2 || id >= p.Count {
		return h, nil, fmt.Errorf("page %d is led to, and the file has %d", id, p.Count)
	}
	at := int64(id) * int64(p.PageSize)
	data = make([]byte, p.PageSize)
	if _, err := p.file.ReadAt(data, at); err != nil {
		return h, nil, err
	}
	h = headerOf(data)
	if h.id != id {
		return h, nil, fmt.Errorf("page %d says that it is page %d", id, h.id)
	}
	if uint64(h.overflow) >= p.Count-id {
		return h, nil, fmt.Errorf("page %d says that it goes on for %d pages, and the file has %d", id, h.overflow, p.Count)
	}
	if h.overflow > 0 {
		data = make([]byte, (1+int64(h.overflow))*int64(p.PageSize))
		_, err = p.file.ReadAt(data, at)
	}
	return h, data, err
}

func headerOf(page []byte) header {
	return header{order.Uint64(page), order.Uint16(page[8:]), order.Uint16(page[10:]), order.Uint32(page[12:])}
}

// elements decodes those of a branch or a leaf. Keys ascend.
func (h header) elements(page []byte) ([]element, error) {
	if len(page) < headerSize+int(h.count)*elementSize || h.flags == isBranch && h.count == 0 {
		return nil, fmt.Errorf("page %d has %d elements in %d bytes", h.id, h.count, len(page))
	}
	all := make([]element, h.count)
	for i := range all {
		from := page[headerSize+i*elementSize:]
		e := &all[i]
		var pos, key, value uint64
		if h.flags == isLeaf {
			e.bucket = order.Uint32(from)&isBucket != 0
			pos, key, value = uint64(order.Uint32(from[4:])), uint64(order.Uint32(from[8:])), uint64(order.Uint32(from[12:]))
		} else {
			pos, key, e.page = uint64(order.Uint32(from)), uint64(order.Uint32(from[4:])), order.Uint64(from[8:])
		}
		if key == 0 || pos+key+value > uint64(len(from)) {
			return nil, fmt.Errorf("element %d of page %d has a key of %d bytes and a value of %d, %d bytes behind it, and %d are left", i, h.id, key, value, pos, len(from))
		}
		e.key, e.value = from[pos:pos+key], from[pos+key:pos+key+value]
		if i > 0 && bytes.Compare(all[i-1].key, e.key) >= 0 {
			return nil, fmt.Errorf("elements %d and %d of page %d are not in order", i-1, i, h.id)
		}
	}
	return all, nil
}

// check reads every page and says what is wrong: each is used once, or free.
func (p *pages) check() (found []string, err error) {
	c := census{pages: p, seen: map[uint64]bool{0: true, 1: true}}
	h, free, err := p.free()
	if err != nil {
		return nil, err
	}
	c.take(h)
	for _, id := range free {
		c.take(header{id: id})
	}
	c.walk(p.Root, nil, nil)
	if p.rows != 0 {
		c.walk(p.rows, nil, nil)
	}
	if len(c.found) > 0 { // what is below a broken page was not seen
		return c.found, c.failed
	}
	for id := range p.Count {
		if !c.seen[id] {
			c.say("page %d is neither used nor free", id)
		}
	}
	return c.found, c.failed
}

// census looks at every page once.
type census struct {
	*pages
	seen   map[uint64]bool // page → is used or free
	found  []string
	failed error // the kernel's word: the file could not be read
}

func (c *census) say(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// take is false if a page was seen before.
func (c *census) take(h header) bool {
	for id := h.id; id <= h.id+uint64(h.overflow); id++ {
		if c.seen[id] {
			c.say("page %d is used twice, or used and free", id)
			return false
		}
		c.seen[id] = true
	}
	return true
}

// walk looks at a page and all below. Its keys are from least up to, and not, end.
func (c *census) walk(id uint64, least, end []byte) {
	h, elements, err := c.elements(id)
	if ofKernel(err) {
		c.failed = err
	} else if err != nil {
		c.say("%v", err)
	}
	if err != nil {
		return
	}
	if !c.take(h) {
		return
	}
	for i, e := range elements {
		if bytes.Compare(e.key, least) < 0 || end != nil && bytes.Compare(e.key, end) >= 0 {
			c.say("element %d of page %d should be in another page", i, id)
		}
		if h.flags == isLeaf {
			continue
		}
		next := end
		if i+1 < len(elements) {
			next = elements[i+1].key
		}
		c.walk(e.page, e.key, next)
	}
}
