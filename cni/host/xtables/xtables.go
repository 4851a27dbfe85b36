// Package xtables says what a network namespace has of ip_tables, which is where the
// rules of iptables-legacy are, and makes nothing of it. Whoever asks otherwise does: the
// kernel makes a table when it is asked for what is in it, be it by iptables-legacy-save
// or by IPT_SO_GET_INFO, and from then on every packet goes through it.
package xtables

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Tables are the names of the tables that the network namespace of the calling thread has
// of IPv4, or of IPv6: none where the kernel has no ip_tables.
func Tables(ipv6 bool) ([]string, error) {
	list := "/proc/thread-self/net/ip_tables_names"
	if ipv6 {
		list = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list tables of iptables-legacy: %w", err)
	}
	return strings.Fields(string(names)), nil
}
