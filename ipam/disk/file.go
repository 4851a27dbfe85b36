package disk

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/flock"
)

// The buckets of the file: rows is the map that ipam.Tx is of; about has one
// key, the version of rows.
var (
	rows   = []byte("rows")
	about  = []byte("about")
	schema = []byte("schema")
)

// file is an open database whose lock is held.
type file struct {
	path    string
	os      *os.File // bbolt's own
	pages   *pages   // what is read before bbolt reads it
	db      *bbolt.DB
	damaged bool // bbolt panicked and is in an unknown state
}

// open opens the file at path as soon as no other process writes it, or
// reads it while this one would write.
//
// bbolt waits for its lock by asking for it every 50 ms. So the lock is taken
// where bbolt opens its file, by waiting in the kernel's queue: a flock(2) lock
// belongs to the open file, and bbolt then finds its own already held.
func open(ctx context.Context, path string, mode int) (*file, error) {
	f := &file{path: path}
	options := &bbolt.Options{
		ReadOnly:     mode == os.O_RDONLY,
		NoStatistics: true,
		// A writer needs the list of free pages; a reader takes it for a sign of
		// damage that would stop the next writer.
		PreLoadFreelist: true,
		OpenFile: func(path string, _ int, _ os.FileMode) (opened *os.File, err error) {
			if f.os, err = openLocked(ctx, path, mode); err != nil {
				return nil, err
			}
			f.pages, err = openPages(f.os)
			return f.os, err
		},
	}
	err := f.guard(func() (err error) {
		f.db, err = bbolt.Open(path, 0, options)
		return err
	})
	if err == nil {
		return f, nil
	}
	if f.os == nil { // not opened or not locked
		return nil, err
	}
	f.abandon()
	return nil, refuse(path, err)
}

// openLocked opens the file and waits for the lock on it.
func openLocked(ctx context.Context, path string, mode int) (*os.File, error) {
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := lockStore(ctx, f, mode); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// lockStore waits for the lock on the file and makes sure that what is locked
// then is the store and something that bbolt may open.
func lockStore(ctx context.Context, f *os.File, mode int) error {
	how := unix.LOCK_EX
	if mode == os.O_RDONLY {
		how = unix.LOCK_SH // what bbolt will ask for, and changing a lock is not atomic
	}
	if err := flock.Lock(ctx, f, how); err != nil {
		return fmt.Errorf("lock store %s: %w", f.Name(), err)
	}
	locked, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	named, err := os.Stat(f.Name())
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if !os.SameFile(locked, named) {
		return fmt.Errorf("open store %s: it was replaced meanwhile: %w", f.Name(), fs.ErrNotExist)
	}
	if locked.Size() == 0 { // bbolt would make a new database of it
		return refuse(f.Name(), errEmpty)
	}
	return nil
}

// close never fails: what a transaction did is on disk before.
func (f *file) close() {
	if f.damaged { // bbolt's Close could wait for a transaction that never ends
		f.abandon()
		return
	}
	_ = f.db.Close()
}

// abandon gives up what bbolt did not close itself. The lock goes by name: the
// mapping, which stays, keeps the file open and would keep it locked.
func (f *file) abandon() {
	_ = flock.Unlock(f.os)
	_ = f.os.Close()
}

// guard runs a call of bbolt's. On pages that contradict each other bbolt
// panics, and pages behind the end of a truncated file fault: both become the
// error of a damaged store.
func (f *file) guard(call func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			f.damaged = true
			err = refuse(f.path, fmt.Errorf("%v", cause))
		}
	}()
	return call()
}

// check looks at every page of the file and returns what it finds wrong.
func (f *file) check() (found []string, err error) {
	t, err := f.begin(false) // is it a store at all?
	if err != nil {
		return nil, err
	}
	defer t.rollback()
	if found, err = f.pages.check(); err != nil {
		return nil, refuse(f.path, err)
	}
	return found, nil
}

func (f *file) view(do func(ipam.Tx) error) error {
	t, err := f.begin(false)
	if err != nil {
		return err
	}
	defer t.rollback()
	return do(t)
}

func (f *file) update(do func(ipam.Tx) error) error {
	t, err := f.begin(true)
	if err != nil {
		return err
	}
	defer t.rollback()
	if err := do(t); err != nil || !t.changed {
		return err
	}
	return t.commit()
}

// begin begins a transaction on a file that is one of this package's.
func (f *file) begin(writable bool) (*tx, error) {
	t := &tx{file: f}
	err := f.guard(func() (err error) {
		if t.bolt, err = f.db.Begin(writable); err != nil {
			return fmt.Errorf("begin transaction on store %s: %w", f.path, err)
		}
		t.rows = t.bolt.Bucket(rows)
		return f.recognize(t.bolt)
	})
	if err != nil {
		t.rollback()
		return nil, err
	}
	return t, nil
}

// recognize refuses a database that is not a complete store of this schema.
func (f *file) recognize(t *bbolt.Tx) error {
	b := t.Bucket(about)
	if b == nil || t.Bucket(rows) == nil {
		return refuse(f.path, errForeign)
	}
	if got, want := string(b.Get(schema)), strconv.Itoa(ipam.Schema); got != want {
		return fmt.Errorf("read store %s: it has schema %q and this program knows schema %s only: "+
			"use the release of Fairlead that wrote it, or a later one", f.path, got, want)
	}
	return nil
}
