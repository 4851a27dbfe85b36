package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
)

// socketNode is a node whose programs see the sockets that are made in its namespace.
type socketNode struct {
	node
	path *DataPath
}

func newSocketNode(t *testing.T) *socketNode {
	t.Helper()
	s := &socketNode{node: node{TB: t, ns: netns.NewT(t)}}
	group := cgroup.NewT(t)
	s.ns.Join(group)
	s.ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip route add default dev lo
		ip -6 route add default dev lo`)
	root := filepath.Join(t.TempDir(), "bpf")
	err := s.ns.Do(func() (err error) {
		if s.path, err = Load(Config{Root: root, CgroupRoot: group.Path}); err != nil {
			return err
		}
		return s.path.Publish()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.ns.Do(func() error { return errors.Join(s.path.Close(), Remove(root)) }); err != nil {
			t.Error(err)
		}
	})
	s.bpfMaps = s.path.Maps
	return s
}

// socket is one that does not wait.
func socket(to netip.AddrPort, kind int) (fd int, sockaddr unix.Sockaddr, err error) {
	if to.Addr().Is4() {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}, err
	}
	fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}, err
}

// begin begins a connection with each of so many sockets.
func begin(to netip.AddrPort, kind, sockets int) error {
	for range sockets {
		fd, sockaddr, err := socket(to, kind)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, sockaddr)
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
	}
	return nil
}

// send sends so many datagrams by one socket, which is not connected.
func send(to netip.AddrPort, datagrams int) error {
	fd, sockaddr, err := socket(to, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for range datagrams {
		if err := unix.Sendto(fd, []byte("hello"), 0, sockaddr); err != nil {
			return err
		}
	}
	return nil
}

// TestSocketOutcomes has sockets end in each way that there is, and no other way is counted.
func TestSocketOutcomes(t *testing.T) {
	s := newSocketNode(t)
	first := uint32(0) // number of a pool
	for name, f := range families {
		first += 10
		at := func(p uint16) netip.AddrPort { return port(f.vip, p) }
		s.service(first+1, at(80), unix.IPPROTO_TCP, Path{Verdict: Forward}, 0, port(f.backend, 8080))
		s.service(first+2, at(80), unix.IPPROTO_UDP, Path{Verdict: Forward}, 0, port(f.backend, 8080))
		s.service(first+3, at(81), unix.IPPROTO_TCP, Path{Verdict: Forward}, 0, port(f.backend, 8080))
		s.put(s.Pools, first+3, Pool{Now: Generation{Id: 2 * (first + 3), Count: 1}, Affinity: 60, Flags: PoolMembers})
		s.service(first+4, at(82), unix.IPPROTO_TCP, Path{Verdict: Reject}, 0)
		s.service(first+5, at(83), unix.IPPROTO_TCP, Path{Verdict: Drop}, 0)
		s.service(first+6, at(84), unix.IPPROTO_TCP, Path{Verdict: Forward}, 0)
		s.service(first+7, at(85), unix.IPPROTO_UDP, Path{Verdict: Reject}, 0)
		for _, try := range []struct {
			what string
			do   func() error
			err  error
			want map[string]uint64
		}{
			{"no Service's", func() error { return begin(port(f.far, 80), unix.SOCK_STREAM, 2) }, nil, map[string]uint64{"passed": 2}},
			{"in turn", func() error { return begin(at(80), unix.SOCK_STREAM, 3) }, nil, map[string]uint64{"forwarded": 3}},
			{"by affinity", func() error { return begin(at(81), unix.SOCK_STREAM, 3) }, nil, map[string]uint64{"forwarded": 1, "kept": 2}},
			{"datagrams", func() error { return send(at(80), 3) }, nil, map[string]uint64{"forwarded": 1, "sent": 2}},
			{"datagrams of a connected socket", func() error { return begin(at(80), unix.SOCK_DGRAM, 2) }, nil, map[string]uint64{"forwarded": 2}},
			{"datagrams for no Service", func() error { return send(port(f.far, 80), 2) }, nil, map[string]uint64{"passed": 2}},
			{"rejected", func() error { return begin(at(82), unix.SOCK_STREAM, 2) }, unix.ECONNREFUSED, map[string]uint64{"refused": 1}},
			{"datagrams rejected", func() error { return send(at(85), 2) }, unix.ECONNREFUSED, map[string]uint64{"refused": 1}},
			{"dropped", func() error { return begin(at(83), unix.SOCK_STREAM, 2) }, nil, map[string]uint64{"left": 2}},
			{"no backend in the maps", func() error { return begin(at(84), unix.SOCK_STREAM, 2) }, unix.ECONNREFUSED, map[string]uint64{"lost": 1}},
		} {
			before := s.ends()
			if err := s.ns.Do(try.do); !errors.Is(err, try.err) {
				t.Errorf("%s, %s: %v, want %v", name, try.what, err, try.err)
			}
			got := s.ends()
			for outcome, n := range before {
				if got[outcome] -= n; got[outcome] == 0 {
					delete(got, outcome)
				}
			}
			if diff := cmp.Diff(try.want, got); diff != "" {
				t.Errorf("%s, %s: outcomes (-want +got):\n%s", name, try.what, diff)
			}
		}
	}
}

// ends are how often sockets ended in which way.
func (s *socketNode) ends() map[string]uint64 {
	s.Helper()
	counts, err := s.path.Outcomes()
	if err != nil {
		s.Fatal(fmt.Errorf("count: %w", err))
	}
	ends := map[string]uint64{}
	for _, c := range counts {
		if c.Path == socketPath {
			ends[c.Name] = c.Count
		}
	}
	return ends
}
