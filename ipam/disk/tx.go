package disk

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"
)

// tx is ipam.Tx on the bucket rows.
type tx struct {
	file    *file
	bolt    *bbolt.Tx
	rows    *bbolt.Bucket
	changed bool
}

// at runs a call of bbolt's about a key, once what it will read is known to be sound.
func (t *tx) at(key []byte, call func() error) error {
	if err := t.file.pages.reach(key); err != nil {
		return refuse(t.file.path, err)
	}
	return t.file.guard(call)
}

// Seek copies what it returns: bbolt's own is a piece of the mapped file, good
// only until the next change.
func (t *tx) Seek(key []byte) (k, v []byte, err error) {
	err = t.at(key, func() error {
		k, v = t.rows.Cursor().Seek(key)
		k, v = bytes.Clone(k), bytes.Clone(v)
		return nil
	})
	return k, v, err
}

func (t *tx) Put(key, value []byte) error {
	t.changed = true
	return t.at(key, func() error {
		if err := t.rows.Put(key, value); err != nil {
			return fmt.Errorf("write store %s: %w", t.file.path, err)
		}
		return nil
	})
}

func (t *tx) Delete(key []byte) error {
	t.changed = true
	return t.at(key, func() error {
		if err := t.rows.Delete(key); err != nil {
			return fmt.Errorf("write store %s: %w", t.file.path, err)
		}
		return nil
	})
}

// commit returns when the transaction is on disk: bbolt syncs the pages, then
// writes and syncs the one that makes them count.
func (t *tx) commit() error {
	return t.file.guard(func() error {
		if err := t.bolt.Commit(); err != nil {
			return fmt.Errorf("write store %s: %w", t.file.path, err)
		}
		return nil
	})
}

// rollback ends the transaction; after commit it does nothing.
func (t *tx) rollback() {
	if t.bolt == nil {
		return
	}
	_ = t.file.guard(t.bolt.Rollback) // the error says that it has ended already
}
