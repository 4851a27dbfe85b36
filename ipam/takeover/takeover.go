// Package takeover reads what the reference plugin host-local keeps of a network,
// so that its pods keep their addresses under Fairlead, and tells it on the way back
// what has become of them (export.go). Until then nothing there is changed.
//
// What is read goes to ipam.Import. The form is host-local's of release 1.9.1:
//
//	DIR/NETWORK/10.1.2.3            container ID, CR LF, name of the interface
//	DIR/NETWORK/last_reserved_ip.0  where its search goes on; of no use here
//	DIR/NETWORK/lock                held by flock(2) during every ADD and DEL
package takeover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/flock"
)

// DefaultDir is where host-local keeps its networks.
const DefaultDir = "/var/lib/cni/networks"

// Dir is host-local's directory of one network. It is locked: host-local adds and
// deletes nothing until Close. The zero Dir is none.
type Dir struct {
	path string
	lock *os.File
}

// Open waits for host-local's lock on a network. The error wraps fs.ErrNotExist if
// host-local knows no such network, and that of ctx when it is done first.
func Open(ctx context.Context, dir, network string) (*Dir, error) {
	path := filepath.Join(dir, network)
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open host-local's network: %w", err)
	}
	// host-local makes the file too, whenever it is run.
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open host-local's lock: %w", err)
	}
	if err := flock.Lock(ctx, f, unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock host-local's network %s: %w", path, err)
	}
	return &Dir{path: path, lock: f}, nil
}

// Close gives the lock back.
func (d *Dir) Close() { _ = d.lock.Close() }

// Rows is what host-local keeps.
type Rows struct {
	// Leases have an owner, his addresses in ascending order, IPv4 first, and in
	// Since the time of their files.
	Leases []ipam.Lease
	// Unowned are addresses that host-local reserves for nobody: it was killed
	// between making the file and writing the owner, so no ADD got them.
	Unowned []netip.Addr
}

// Read reads every row. The error joins a sentence for each file that is named as
// an address and cannot be read; as host-local does, it passes over other files.
func (d *Dir) Read() (Rows, error) {
	files, err := os.ReadDir(d.path)
	if err != nil {
		return Rows{}, fmt.Errorf("read host-local's network: %w", err)
	}
	var rows Rows
	var unreadable []error
	leases := map[ipam.Owner]*ipam.Lease{}
	for _, file := range files {
		addr, isRow := parseName(file.Name())
		if !isRow {
			continue
		}
		row, err := d.read(file.Name())
		switch {
		case err != nil:
			unreadable = append(unreadable, fmt.Errorf("read host-local's row of %s: %w", addr, err))
		case row.Owner == ipam.Owner{}:
			rows.Unowned = append(rows.Unowned, addr)
		default:
			if leases[row.Owner] == nil {
				leases[row.Owner] = &row
			}
			lease := leases[row.Owner]
			lease.Addrs = append(lease.Addrs, addr)
		}
	}
	for _, lease := range leases {
		slices.SortFunc(lease.Addrs, netip.Addr.Compare)
		rows.Leases = append(rows.Leases, *lease)
	}
	slices.SortFunc(rows.Unowned, netip.Addr.Compare)
	slices.SortFunc(rows.Leases, func(a, b ipam.Lease) int {
		return cmp.Or(a.Addrs[0].Compare(b.Addrs[0]), cmp.Compare(a.IfName, b.IfName))
	})
	return rows, errors.Join(unreadable...)
}

// read reads the file of one address: a lease without addresses.
func (d *Dir) read(name string) (ipam.Lease, error) {
	path := filepath.Join(d.path, name)
	info, err := os.Stat(path)
	if err != nil {
		return ipam.Lease{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ipam.Lease{}, err
	}
	owner, err := parseOwner(string(text))
	return ipam.Lease{Owner: owner, Since: info.ModTime().UTC()}, err
}

// parseName takes the name of a file that host-local gave an address: the one
// form in which Go writes it.
func parseName(name string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(name)
	return addr, err == nil && addr.Zone() == "" && !addr.Is4In6() && addr.String() == name
}

// parseOwner takes what is in such a file. It is the zero Owner of an empty one.
func parseOwner(text string) (ipam.Owner, error) {
	text = strings.TrimSpace(text) // as host-local compares it
	if text == "" {
		return ipam.Owner{}, nil
	}
	id, ifName, found := strings.Cut(text, "\r\n")
	if !found {
		id, ifName, _ = strings.Cut(text, "\n")
	}
	if utils.ValidateContainerID(id) != nil || utils.ValidateInterfaceName(ifName) != nil {
		return ipam.Owner{}, fmt.Errorf("%q is not a container ID and, on a second line, an interface", text)
	}
	return ipam.Owner{ContainerID: id, IfName: ifName}, nil
}
