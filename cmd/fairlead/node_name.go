package main

import (
	"fmt"
	"strings"
)

// nodeName is the name of this node's Node object: as given, or else the host's
// in lower case, as the kubelet has it.
func (e env) nodeName(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	hostname, err := e.hostname()
	if err != nil {
		return "", fmt.Errorf("find the node's name: %w: give it by --node-name", err)
	}
	return strings.ToLower(hostname), nil
}
