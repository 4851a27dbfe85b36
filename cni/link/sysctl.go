package link

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/fairlead/fairlead/cni/host/sysctl"
)

// Sysctl is a value below /proc/sys. Path has slashes, because the names of
// interfaces may hold dots: net/ipv4/conf/eth0.100/arp_notify.
type Sysctl struct{ Path, Value string }

// Sysctl reads a value of the namespace. The error wraps fs.ErrNotExist if the
// kernel has none of that name, as without IPv6.
func (ns *NS) Sysctl(path string) (string, error) {
	var value string
	err := ns.do(func() (err error) {
		value, err = sysctl.Read(path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return value, nil
}

// SetSysctls sets values of the namespace in the order given. A value that the
// kernel does not have, as those of IPv6 in a kernel without it, is passed over:
// what it was set for then fails by itself, and says so better.
func (ns *NS) SetSysctls(values ...Sysctl) error {
	return ns.do(func() error {
		for _, v := range values {
			err := sysctl.Write(v.Path, v.Value)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("set sysctl %s=%s: %w", v.Path, v.Value, err)
			}
		}
		return nil
	})
}
