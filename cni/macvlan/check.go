package macvlan

import (
	"errors"
	"fmt"

	"github.com/fairlead/fairlead/cni/link"
)

// Check compares the kind, mode and master of pod, which is the pod's interface,
// with the configuration, and returns what differs, in words. The error says what
// could not be read.
//
// A master that the configuration leaves to the default route is not looked at:
// the route may have moved since, and the pod did not.
func (a *Attachment) Check(pod link.Device) ([]string, error) {
	if pod.Kind != Kind {
		return []string{fmt.Sprintf("interface %s is a %s, not a macvlan", pod.Name, pod.Kind)}, nil
	}
	mode, err := a.Pod.MacvlanMode(pod)
	if err != nil {
		return nil, err
	}
	var differences []string
	if mode != a.Config.mode {
		differences = append(differences, fmt.Sprintf("mode of %s is %s, not %s", pod.Name, mode, a.Config.mode))
	}
	if a.Config.Master == "" {
		return differences, nil
	}
	master, err := a.masterNS().Device(a.Config.Master)
	if errors.Is(err, link.ErrNoDevice) {
		return append(differences, fmt.Sprintf("master %s is gone", a.Config.Master)), nil
	}
	if err != nil {
		return nil, err
	}
	if pod.Peer != master.Index {
		differences = append(differences, fmt.Sprintf("master of %s is not %s", pod.Name, master.Name))
	}
	return differences, nil
}
