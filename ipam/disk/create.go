package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/flock"
)

// create makes the store's file if it is not there. It is made under another
// name and renamed when it is complete, so whoever finds it finds all of it. Who
// makes one holds the lock of the directory: what stands under the other name
// then was left by a process that was killed.
func create(ctx context.Context, path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := flock.Lock(ctx, d, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock directory %s: %w", dir, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err // another process was faster
	}
	if err := createAs(path+".new", path); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("create store: sync directory: %w", err)
	}
	return nil
}

// createAs makes the file under a temporary name and gives it its own.
func createAs(temporary, path string) error {
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(temporary, 0o600, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(writeEmpty), db.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// writeEmpty writes a store without rows.
func writeEmpty(t *bbolt.Tx) error {
	b, err := t.CreateBucket(about)
	if err != nil {
		return err
	}
	if err := b.Put(schema, strconv.AppendInt(nil, ipam.Schema, 10)); err != nil {
		return err
	}
	_, err = t.CreateBucket(rows)
	return err
}
