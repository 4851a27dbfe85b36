package install

import (
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
)

// Networks returns the configurations of our plugin in a directory, as a runtime
// gives them to it, in the order of their files. A file that cannot be read does
// not keep the others from being returned; it is in the error.
func Networks(dir string) (configs [][]byte, err error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("find network configurations: %w", err)
	}
	slices.Sort(files)
	var unreadable []error
	for _, file := range files {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			unreadable = append(unreadable, fmt.Errorf("read network configuration %s: %w", file, err))
			continue
		}
		for _, plugin := range list.Plugins {
			if plugin.Network.Type != Plugin {
				continue
			}
			whole, err := libcni.InjectConf(plugin, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
			if err != nil {
				unreadable = append(unreadable, fmt.Errorf("read network configuration %s: %w", file, err))
				continue
			}
			configs = append(configs, whole.Bytes)
		}
	}
	return configs, errors.Join(unreadable...)
}
