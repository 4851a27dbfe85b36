package nft

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/netns"
)

// do runs f with a connection to the packet filter of ns.
func do(t *testing.T, ns *netns.NS, f func(*Conn) error) {
	t.Helper()
	err := ns.Do(func() error {
		conn, err := Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(conn)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func owner(id string) mode.Owner { return mode.Owner{Network: "net", ContainerID: id, IfName: "eth0"} }

func addrs(text ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range text {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func prefixes(text ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range text {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func masquerade(id string, pod ...string) func(*Conn) error {
	return func(c *Conn) error {
		_, err := c.Masquerade(owner(id), addrs(pod...), prefixes("10.9.0.0/24", "fd09::/64"))
		return err
	}
}

var podMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}

func checkSource(id, port string, pod ...string) func(*Conn) error {
	return func(c *Conn) error {
		_, err := c.CheckSource(owner(id), port, podMAC, addrs(pod...))
		return err
	}
}

// TestRuleset compares what nft(8) makes of the tables with golden files.
func TestRuleset(t *testing.T) {
	tests := map[string][]func(*Conn) error{
		"masquerade": {masquerade("pod-1", "10.9.0.2", "fd09::2"), masquerade("pod-2", "10.9.0.3")},
		"source":     {checkSource("pod-1", "vethaaaa", "10.9.0.2", "fd09::2"), checkSource("pod-2", "vethbbbb")},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			ns := netns.NewT(t)
			for _, step := range steps {
				do(t, ns, step)
			}
			compareGolden(t, filepath.Join("testdata", name+".nft"), ns.RunT(t, "nft", "list", "ruleset"))
		})
	}
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	golden.Compare(t, path, got)
}

// TestElements looks at whose elements there are after each of some steps.
func TestElements(t *testing.T) {
	tests := map[string]struct {
		steps []func(*Conn) error
		want  map[string]int // owner → elements
	}{
		"two pods": {
			[]func(*Conn) error{masquerade("a", "10.9.0.2", "fd09::2"), checkSource("b", "vethb", "10.9.0.3")},
			map[string]int{"net/a/eth0": 2, "net/b/eth0": 3},
		},
		"another network of the same addresses to spare": {
			[]func(*Conn) error{masquerade("a", "10.9.0.2"), func(c *Conn) error {
				_, err := c.Masquerade(mode.Owner{Network: "other", ContainerID: "a", IfName: "eth0"}, addrs("10.9.0.3"), prefixes("10.9.0.0/24", "fd09::/64"))
				return err
			}},
			map[string]int{"net/a/eth0": 1, "other/a/eth0": 1},
		},
		"an address gets a new owner": {
			[]func(*Conn) error{masquerade("lost", "10.9.0.2", "fd09::2"), masquerade("new", "10.9.0.2", "fd09::3")},
			map[string]int{"net/lost/eth0": 1, "net/new/eth0": 2},
		},
		"a port gets a new owner": {
			[]func(*Conn) error{checkSource("lost", "vetha", "10.9.0.2"), checkSource("new", "vetha", "10.9.0.2")},
			map[string]int{"net/new/eth0": 3},
		},
		"stopped": {
			[]func(*Conn) error{
				masquerade("a", "10.9.0.2", "fd09::2"), masquerade("b", "10.9.0.3"),
				checkSource("a", "vetha", "10.9.0.2"), checkSource("b", "vethb"),
				func(c *Conn) error { return c.StopMasquerade(owner("a")) },
				func(c *Conn) error { return c.StopCheck(owner("a")) },
			},
			map[string]int{"net/b/eth0": 3},
		},
		"stopped where there is nothing": {
			[]func(*Conn) error{
				func(c *Conn) error { return c.StopMasquerade(owner("a")) },
				func(c *Conn) error { return c.StopCheck(owner("a")) },
				func(c *Conn) error { return c.Collect("net", nil) },
			},
			map[string]int{},
		},
		"collected": {
			[]func(*Conn) error{
				masquerade("a", "10.9.0.2"), masquerade("b", "10.9.0.3"), checkSource("a", "vetha"), checkSource("b", "vethb"),
				func(c *Conn) error {
					_, err := c.Masquerade(mode.Owner{Network: "net2", ContainerID: "a", IfName: "eth0"}, addrs("10.9.0.4"), nil)
					return err
				},
				func(c *Conn) error { return c.Collect("net", []mode.Owner{owner("b")}) },
			},
			map[string]int{"net/b/eth0": 3, "net2/a/eth0": 1},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ns := netns.NewT(t)
			for _, step := range tt.steps {
				do(t, ns, step)
			}
			got := map[string]int{}
			for _, word := range strings.Fields(ns.RunT(t, "nft", "list", "ruleset")) {
				if comment := strings.Trim(word, `",`); strings.HasSuffix(comment, "/eth0") {
					got[comment]++
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
		})
	}
}

// TestManyElements fills more than one message of the kernel's.
func TestManyElements(t *testing.T) {
	const pods = 2000
	ns := netns.NewT(t)
	do(t, ns, func(c *Conn) error {
		for i := range pods {
			addr := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
			if _, err := c.Masquerade(owner(fmt.Sprintf("%064d", i)), []netip.Addr{addr}, nil); err != nil {
				return err
			}
		}
		return c.StopMasquerade(owner(fmt.Sprintf("%064d", pods-1)))
	})
	do(t, ns, func(c *Conn) error {
		left, err := c.list(masquerade4)
		if err == nil && len(left) != pods-1 {
			err = fmt.Errorf("%d elements are left", len(left))
		}
		return err
	})
}

func TestConcurrentOwners(t *testing.T) {
	ns := netns.NewT(t)
	errs := make(chan error)
	const workers, rounds = 8, 50
	for w := range workers {
		go func() {
			errs <- ns.Do(func() error {
				conn, err := Open()
				if err != nil {
					return err
				}
				defer conn.Close()
				for i := range rounds {
					o := owner(fmt.Sprintf("%d-%d", w, i))
					_, err := conn.Masquerade(o, []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(w), byte(i)})}, prefixes("10.9.0.0/16"))
					if err != nil {
						return err
					}
					if err := conn.StopMasquerade(o); err != nil {
						return err
					}
				}
				return nil
			})
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if ruleset := ns.RunT(t, "nft", "list", "ruleset"); strings.Contains(ruleset, "elements") {
		t.Errorf("elements are left:\n%s", ruleset)
	}
}
