// Package pins attaches what the service proxy has pinned to the port of a new pod,
// for the CNI plugin: so that the pod's first packet is served, which may be sent
// before the proxy hears of the port, or while there is no proxy. The proxy takes over
// what it finds attached.
//
//	ROOT/programs/COOKIE/port-in      program for ports, of the network namespace COOKIE
//	ROOT/programs/COOKIE/port-filter  in its place, where it is attached as a filter of clsact
//	ROOT/packet/INDEX-in              the link of a port
//
// It speaks to bpf(2) itself, three calls: a library for all of it costs every ADD of
// every pod more time than these.
package pins

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultRoot is where the proxy pins everything if it is not told otherwise.
const DefaultRoot = "/sys/fs/bpf/fairlead"

// Programs is the folder of the programs for links of a network namespace, given by
// its cookie.
func Programs(root string, cookie uint64) string {
	return filepath.Join(root, "programs", fmt.Sprint(cookie))
}

// The names of the program for what comes in by ports of bridges. There is one of them:
// it says how the program is attached.
const (
	PortIn     = "port-in"     // by tcx
	PortFilter = "port-filter" // as a filter, before kernel 6.6 or without tcx
)

// Links is the folder of the links to packets.
func Links(root string) string { return filepath.Join(root, "packet") }

// Name is the name of a network interface's link for packets that go one way.
func Name(index int, way string) string { return fmt.Sprintf("%d-%s", index, way) }

// In is the way of packets that come in.
const In = "in"

// None says, by one system call, that no proxy has pinned anything under root.
func None(root string) bool {
	_, err := os.Stat(filepath.Join(root, "programs"))
	return err != nil
}

// AttachPort attaches the program for ports to one, in the network namespace of the
// calling thread. Where nothing is pinned for that it does nothing.
func AttachPort(root string, index int) error {
	cookie, err := NetnsCookie()
	if err != nil {
		return err
	}
	folder := Programs(root, cookie)
	program, err := get(filepath.Join(folder, PortIn))
	attach := func(program, index int) error { return linkPort(root, program, index) }
	if errors.Is(err, unix.ENOENT) {
		program, err = get(filepath.Join(folder, PortFilter))
		attach = filterPort
	}
	if errors.Is(err, unix.ENOENT) {
		return nil // a proxy of other nodes that share the file system
	}
	if err != nil {
		return fmt.Errorf("open the program for ports in %s: %w", folder, err)
	}
	defer func() { _ = unix.Close(program) }()
	err = attach(program, index)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("attach to packets of interface %d: %w", index, err)
	}
	return nil
}

// linkPort attaches the program by a link, and pins that.
func linkPort(root string, program, index int) error {
	link, err := attachTCX(program, index)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(link) }() // which detaches it, if it is not pinned
	err = pin(link, filepath.Join(Links(root), Name(index, In)))
	if err != nil && !errors.Is(err, unix.EEXIST) { // the proxy was faster
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// NetnsCookie is the cookie of the calling thread's network namespace (kernel 5.14).
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// object is what BPF_OBJ_GET and BPF_OBJ_PIN take.
type object struct {
	path uint64
	fd   uint32
	_    uint32 // flags
}

func get(path string) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	fd, err := bpf(unix.BPF_OBJ_GET, &object{path: uint64(uintptr(unsafe.Pointer(p)))})
	runtime.KeepAlive(p)
	return fd, err
}

func pin(fd int, path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	_, err = bpf(unix.BPF_OBJ_PIN, &object{path: uint64(uintptr(unsafe.Pointer(p))), fd: uint32(fd)})
	runtime.KeepAlive(p)
	return err
}

// tcxIngress is BPF_TCX_INGRESS (kernel 6.6).
const tcxIngress = 46

// attachTCX is what BPF_LINK_CREATE does for tcx.
func attachTCX(program, index int) (int, error) {
	return bpf(unix.BPF_LINK_CREATE, &struct {
		program, index, attach, flags uint32
		relative, pad                 uint32
		revision                      uint64
	}{program: uint32(program), index: uint32(index), attach: tcxIngress})
}

// bpf is bpf(2).
func bpf[T any](command uintptr, attr *T) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
