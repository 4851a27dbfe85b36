package filter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/ipam/flock"
)

// records is a directory with a file for each pod, named after its owner, with a
// Pod as JSON:
//
//	/run/fairlead/filter-1/net:0c22…:eth0
//
// /run is empty after a boot, and so is the packet filter. The directory is named
// after the network namespace, of which a machine may have several that are nodes,
// and is there as long as there is a file in it.
type records struct{ dir string }

// MAC is a hardware address, in records as people write it.
type MAC net.HardwareAddr

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(net.HardwareAddr(m).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := link.ParseMAC(string(text))
	*m = MAC(mac)
	return err
}

// recordsRoot has the directories of all namespaces.
const recordsRoot = "/run/fairlead"

// recordsDir is the directory of the calling thread's namespace: by its cookie,
// which no other has or will have (Linux 5.14), else by its inode.
func recordsDir() (string, error) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("name network namespace: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	id, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		var stat unix.Stat_t
		err = unix.Stat("/proc/thread-self/ns/net", &stat)
		id = stat.Ino
	}
	if err != nil {
		return "", fmt.Errorf("name network namespace: %w", err)
	}
	return filepath.Join(recordsRoot, fmt.Sprintf("filter-%d", id)), nil
}

// path is of an owner's file. Neither networks, containers nor interfaces have a
// colon in their names (CNI specification, section 2; dev_valid_name).
func (r records) path(owner mode.Owner) string {
	return filepath.Join(r.dir, strings.ReplaceAll(owner.String(), "/", ":"))
}

// attempts is how often a directory is made again that the last pod's end removed.
const attempts = 10

// write writes a record in the place of one that there may be.
func (r records) write(p Pod) (err error) {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode record of %s: %w", p.Owner, err)
	}
	for range attempts {
		if err = os.WriteFile(r.path(p.Owner), text, 0o600); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return fmt.Errorf("write record of %s: %w", p.Owner, err)
		}
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", p.Owner, err)
	}
	return nil
}

// read returns the zero Pod if there is no record, or one whose ADD died while it
// wrote it, before it did anything of it.
func (r records) read(owner mode.Owner) (Pod, error) {
	text, err := os.ReadFile(r.path(owner))
	if errors.Is(err, fs.ErrNotExist) {
		return Pod{}, nil
	}
	if err != nil {
		return Pod{}, fmt.Errorf("read record of %s: %w", owner, err)
	}
	var p Pod
	if json.Unmarshal(text, &p) != nil || p.Owner.String() != owner.String() {
		return Pod{}, nil
	}
	return p, nil
}

// list returns the pods with a record, the latest first. The error joins those of
// all files that could not be read.
func (r records) list() ([]Pod, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	type dated struct {
		Pod
		written time.Time
	}
	var found []dated
	var failed []error
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		info, statErr := e.Info()
		if err := errors.Join(err, statErr); err != nil && !errors.Is(err, fs.ErrNotExist) { // gone in between
			failed = append(failed, fmt.Errorf("read record: %w", err))
		}
		p := dated{}
		if err == nil && statErr == nil && json.Unmarshal(text, &p.Pod) == nil {
			p.written = info.ModTime()
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b dated) int {
		return cmp.Or(b.written.Compare(a.written), strings.Compare(a.Owner.String(), b.Owner.String()))
	})
	pods := make([]Pod, 0, len(found))
	for _, p := range found {
		pods = append(pods, p.Pod)
	}
	return pods, errors.Join(failed...)
}

func (r records) remove(owner mode.Owner) error { return r.delete(r.path(owner)) }

// delete deletes a record, and the directory with the last one.
func (r records) delete(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record: %w", err)
	}
	_ = unix.Rmdir(r.dir) // which fails as long as there are others
	return nil
}

// collect deletes the records of pods of a network that are not to be kept, and
// what is left of those that were never completely written.
func (r records) collect(network string, keep []mode.Owner) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list records: %w", err)
	}
	kept := make(map[string]bool, len(keep))
	for _, o := range keep {
		kept[o.String()] = true
	}
	var failed []error
	for _, e := range entries {
		owner := strings.ReplaceAll(e.Name(), ":", "/")
		if mode.InNetwork(owner, network) && !kept[owner] {
			failed = append(failed, r.delete(filepath.Join(r.dir, e.Name())))
		}
	}
	return errors.Join(failed...)
}

func (r records) exist() (bool, error) {
	_, err := os.Stat(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// The kinds of lock: pods are removed by any number of processes at once, and all
// are repaired by one while none is removed.
const (
	shared    = unix.LOCK_SH
	exclusive = unix.LOCK_EX
)

// lockLimit is how long others are waited for: each takes some milliseconds.
const lockLimit = time.Minute

// lock waits for the lock of the directory. One that is not there has nothing to
// repair, and needs none.
func (r records) lock(how int) (unlock func(), err error) {
	dir, err := os.Open(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockLimit)
	defer cancel()
	if err := flock.Lock(ctx, dir, how); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock records in %s: %w", r.dir, err)
	}
	return func() { _ = dir.Close() }, nil
}
