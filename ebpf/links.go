package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// links are the links of a network namespace with the programs of the packet path
// on them. New ones get theirs as soon as the kernel tells of them.
type links struct {
	programs *bpfPrograms
	addrs    *ebpf.Map // masquerade_addrs
	podLinks *ebpf.Map
	dir      string // of the pins: INDEX-in, INDEX-out
	ns       netns.NsHandle
	kernel   *netlink.Handle

	mu     sync.Mutex // guards all below
	roles  map[int]role
	isPod  func(name string) bool // nil: no link
	clsact bool                   // the kernel has no tcx, or it is not wanted
	news   *nl.NetlinkSocket      // nil: nobody listens
	ended  chan struct{}          // closed when nobody listens any more
}

// openLinks is for the network namespace of the calling thread.
func openLinks(programs *bpfPrograms, maps *bpfMaps, dir string) (*links, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &links{programs: programs, addrs: maps.MasqueradeAddrs, podLinks: maps.PodLinks, dir: dir, ns: ns, kernel: kernel}, nil
}

func (s *links) close() error {
	s.mu.Lock()
	news, ended := s.news, s.ended
	s.mu.Unlock()
	if news != nil {
		news.Close()
		<-ended
	}
	s.kernel.Close()
	return s.ns.Close()
}

// setPodLinks says by which links, given by their names, packets of pods come in.
func (s *links) setPodLinks(isPod func(name string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isPod = isPod
	return s.markLinks()
}

// refresh writes the rows of all links anew.
func (s *links) refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.markLinks(), s.syncAddrs())
}

func (s *links) markLinks() error {
	all, err := s.kernel.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	return s.markAll(all)
}

func (s *links) markAll(all []netlink.Link) error {
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var errs []error
	for _, l := range all {
		errs = append(errs, s.mark(l, names[l.Attrs().MasterIndex]))
	}
	return errors.Join(errs...)
}

// mark notes whether a link is a pod's: by its own name, or by that of the link that
// it is a member of.
func (s *links) mark(l netlink.Link, master string) error {
	index := uint32(l.Attrs().Index)
	if s.isPod != nil && (s.isPod(l.Attrs().Name) || (master != "" && s.isPod(master))) {
		return s.podLinks.Put(index, uint32(1))
	}
	return s.unmark(index)
}

func (s *links) unmark(index uint32) error {
	if err := s.podLinks.Delete(index); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// attach puts the programs on all links, in place of those of an earlier process,
// and from then on on new ones. It may be called again, to mend.
func (s *links) attach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return err
	}
	return s.attachAll()
}

// listen starts before all links are listed, so that none comes in between.
func (s *links) listen() error {
	if s.news != nil {
		return nil
	}
	news, err := nl.SubscribeAt(s.ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("listen for new links: %w", err)
	}
	s.news, s.ended = news, make(chan struct{})
	go s.follow(news, s.ended)
	return nil
}

// follow keeps up with the kernel until the socket closes, or something goes wrong:
// then attached says so.
func (s *links) follow(news *nl.NetlinkSocket, ended chan struct{}) {
	defer close(ended)
	runtime.LockOSThread() // never unlocked: the thread ends with its namespace
	err := netns.Set(s.ns)
	for err == nil {
		err = s.next(news)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	news.Close()
	s.news = nil
}

func (s *links) next(news *nl.NetlinkSocket) error {
	messages, _, err := news.Receive()
	if err != nil && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil { // some were lost
		return s.attachAll()
	}
	moved := false
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			header := unix.NlMsghdr(m.Header)
			if err := s.changed(&header, m.Data); err != nil {
				return err
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			moved = true
		}
	}
	if moved {
		return s.syncAddrs()
	}
	return nil
}

// changed takes in that a link is new, is another than before, or is gone.
func (s *links) changed(header *unix.NlMsghdr, data []byte) error {
	if nl.DeserializeIfInfomsg(data).Family != unix.AF_UNSPEC {
		return nil // a bridge's view of it
	}
	l, err := netlink.LinkDeserialize(header, data)
	if err != nil {
		return err
	}
	if header.Type == unix.RTM_DELLINK {
		delete(s.roles, l.Attrs().Index)
		return errors.Join(s.unmark(uint32(l.Attrs().Index)), s.forget())
	}
	master, masterName := "", ""
	if index := l.Attrs().MasterIndex; index != 0 {
		m, err := s.kernel.LinkByIndex(index)
		if err != nil {
			return ignoreGone(err)
		}
		master, masterName = m.Type(), m.Attrs().Name
	}
	if err := s.mark(l, masterName); err != nil {
		return err
	}
	r := roleOf(l, master)
	if had, ok := s.roles[l.Attrs().Index]; ok && had == r {
		return nil
	}
	return ignoreGone(s.attachLink(l, r))
}

// ignoreGone: of a link that is gone we are told next.
func ignoreGone(err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (s *links) attachAll() error {
	all, err := s.kernel.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	types := map[int]string{}
	for _, l := range all {
		types[l.Attrs().Index] = l.Type()
	}
	if err := s.markAll(all); err != nil {
		return err
	}
	// The first packet may be one to masquerade.
	if err := s.syncAddrs(); err != nil {
		return err
	}
	s.roles = map[int]role{}
	for _, l := range all {
		if err := ignoreGone(s.attachLink(l, roleOf(l, types[l.Attrs().MasterIndex]))); err != nil {
			return err
		}
	}
	return s.forget()
}

// attachLink gives a link the programs of its role.
func (s *links) attachLink(l netlink.Link, r role) error {
	for _, side := range sides {
		if err := s.attachSide(l.Attrs().Index, side, s.programs.at(side, r)); err != nil {
			return fmt.Errorf("attach to packets %s of link %s: %w", side.name, l.Attrs().Name, err)
		}
	}
	s.roles[l.Attrs().Index] = r
	return nil
}

// attachSide makes program, or with nil none, the one that runs there. The kernel has a
// program at one place once, and the CNI plugin may have attached it a moment ago: then
// its link is pinned, or goes, in the next moment, which on a starved machine takes long.
func (s *links) attachSide(index int, side side, program *ebpf.Program) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		err := s.attachOnce(index, side, program)
		if !errors.Is(err, unix.EEXIST) || time.Now().After(deadline) {
			return err
		}
	}
}

func (s *links) attachOnce(index int, side side, program *ebpf.Program) error {
	old, err := link.LoadPinnedLink(s.pin(index, side), nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if old != nil {
		defer func() { _ = old.Close() }()
		if program != nil && !s.clsact && onLink(old, index) {
			return update(old, program)
		}
	}
	if s.clsact {
		return errors.Join(attachFilter(s.kernel, index, side, program), takeOff(old))
	}
	if err := takeOff(old); err != nil {
		return err
	}
	if program != nil {
		if err := s.attachTCX(index, side, program); err != nil || s.clsact {
			return err
		}
	}
	return attachFilter(s.kernel, index, side, nil) // of a process that had those
}

// update makes program the one of a link. The kernel does not replace a program by
// itself.
func update(l link.Link, program *ebpf.Program) error {
	err := l.Update(program)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	has, infoErr := l.Info()
	wanted, wantedErr := program.Info()
	if infoErr != nil || wantedErr != nil {
		return errors.Join(infoErr, wantedErr)
	}
	if id, ok := wanted.ID(); ok && has.Program == id {
		return nil
	}
	return err
}

// takeOff removes a link, which may be nil.
func takeOff(old link.Link) error {
	if old == nil {
		return nil
	}
	return errors.Join(old.Detach(), old.Unpin())
}

// attachTCX attaches a program where none of ours is. Where the kernel has no tcx it
// makes it a filter, and notes that.
func (s *links) attachTCX(index int, side side, program *ebpf.Program) error {
	made, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: program, Attach: side.attach})
	if errors.Is(err, ebpf.ErrNotSupported) {
		s.clsact = true
		return attachFilter(s.kernel, index, side, program)
	}
	if err != nil {
		return err
	}
	err = made.Pin(s.pin(index, side))
	_ = made.Close()
	return err // EEXIST: the CNI plugin was faster
}

// pinPrograms gives the CNI plugin the program that new ports need, in the place of
// an earlier one, in one step.
func (s *links) pinPrograms(root string) error {
	cookie, err := pins.NetnsCookie()
	if err != nil {
		return err
	}
	folder := pins.Programs(root, cookie)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	name, other, next := pins.PortIn, pins.PortFilter, filepath.Join(folder, "next")
	if s.clsact {
		name, other = other, name
	}
	for _, old := range []string{next, filepath.Join(folder, other)} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	program, err := s.programs.PacketPortIn.Clone()
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	if err := program.Pin(next); err != nil {
		return fmt.Errorf("pin program %s: %w", next, err)
	}
	return os.Rename(next, filepath.Join(folder, name))
}

// onLink says whether what is pinned is at the link: the pin may be of one with the
// same number that is gone.
func onLink(l link.Link, index int) bool {
	info, err := l.Info()
	return err == nil && info.TCX() != nil && int(info.TCX().Ifindex) == index
}

func (s *links) pin(index int, side side) string {
	return filepath.Join(s.dir, pins.Name(index, side.name))
}

// forget removes the pins of links that are gone.
func (s *links) forget() error {
	pins, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		number, _, _ := strings.Cut(pin.Name(), "-")
		index, err := strconv.Atoi(number)
		if _, there := s.roles[index]; there && err == nil {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, pin.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// canAttach puts a program on lo for a moment.
func (s *links) canAttach() error {
	const lo = 1 // in every network namespace
	out := side{attach: ebpf.AttachTCXEgress}
	made, err := link.AttachTCX(link.TCXOptions{Interface: lo, Program: s.programs.PacketOut, Attach: out.attach})
	if err == nil {
		return made.Close()
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("attach to packets of lo: %w", err)
	}
	err = attachFilter(s.kernel, lo, out, s.programs.PacketOut)
	if err == nil {
		err = attachFilter(s.kernel, lo, out, nil)
	}
	if err != nil {
		return fmt.Errorf("attach to packets of lo, without tcx (kernel 6.6) as a filter of clsact: %w", err)
	}
	return nil
}

// attached looks whether all links have their programs, and new ones will.
func (s *links) attached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news == nil {
		return false
	}
	for index, r := range s.roles {
		for _, side := range sides {
			if s.programs.at(side, r) != nil && !s.hasProgram(index, side) {
				return false
			}
		}
	}
	return true
}

// hasProgram says whether a link has what attachSide gave it: somebody may have removed
// the pin, or have detached the program and left the pin.
func (s *links) hasProgram(index int, side side) bool {
	if s.clsact {
		return hasFilter(s.kernel, index, side)
	}
	l, err := link.LoadPinnedLink(s.pin(index, side), nil)
	if err != nil {
		return false
	}
	defer func() { _ = l.Close() }()
	return onLink(l, index)
}
