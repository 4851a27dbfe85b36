package ebpf

import (
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Strangers are the names of programs of others at the hooks by which sockets are led
// to endpoints, sorted: what they do to a connection is done before ours or after.
// cgroupRoot is as in Config.
func Strangers(cgroupRoot string) ([]string, error) {
	if cgroupRoot == "" {
		var err error
		if cgroupRoot, err = findCgroupRoot(); err != nil {
			return nil, err
		}
	}
	folder, err := os.Open(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer func() { _ = folder.Close() }()
	ours := []string{bpfProgSockConnect4, bpfProgSockConnect6, bpfProgSockSendmsg4, bpfProgSockSendmsg6}
	var names []string
	for _, hook := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	} {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(folder.Fd()), Attach: hook})
		if err != nil {
			return nil, fmt.Errorf("list programs of %s: %w", cgroupRoot, err)
		}
		for _, attached := range found.Programs {
			if name := nameOf(attached.ID); !slices.Contains(ours, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// nameOf is a program's name, or its number if it has none.
func nameOf(id ebpf.ProgramID) string {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program %d", id)
	}
	defer func() { _ = program.Close() }()
	info, err := program.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprintf("program %d", id)
	}
	return info.Name
}
