package conntrack

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/sysctl"
)

// Limits are what the kernel is told of its connection tracking; zero values leave
// what is there.
type Limits struct {
	Flows          int // tracked at once, at least
	TCPEstablished time.Duration
	TCPCloseWait   time.Duration
	UDP, UDPStream time.Duration // unanswered and answered flows
	TCPBeLiberal   bool          // segments outside of the window are not invalid
}

// Apply sets the limits in the network namespace of the calling thread. That of
// flows is only ever raised; it is the whole machine's, and only the first network
// namespace may set it. What can be set is set, whatever the error says of others.
func (l Limits) Apply() error {
	errs := []error{limit("max").raise(l.Flows), l.widen()}
	for name, timeout := range map[string]time.Duration{
		"tcp_timeout_established": l.TCPEstablished,
		"tcp_timeout_close_wait":  l.TCPCloseWait,
		"udp_timeout":             l.UDP,
		"udp_timeout_stream":      l.UDPStream,
	} {
		if timeout > 0 {
			errs = append(errs, limit(name).set(int(timeout.Seconds())))
		}
	}
	if l.TCPBeLiberal {
		errs = append(errs, limit("tcp_be_liberal").set(1))
	}
	return errors.Join(errs...)
}

// widen makes buckets for as many flows in each as the kernel's own default has. In
// a container they may be out of reach: the kernel only takes longer to find a flow.
func (l Limits) widen() error {
	err := number{hashsize, readFile, writeFile}.raise(l.Flows / 4)
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

const hashsize = "/sys/module/nf_conntrack/parameters/hashsize"

// number is one that the kernel can be told.
type number struct {
	path  string
	read  func(path string) (string, error)
	write func(path, value string) error
}

func limit(name string) number {
	return number{"net/netfilter/nf_conntrack_" + name, sysctl.Read, sysctl.Write}
}

func readFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}

func writeFile(path, value string) error { return os.WriteFile(path, []byte(value), 0) }

// raise sets a number that is lower.
func (n number) raise(least int) error {
	now, err := n.now()
	if least == 0 || err == nil && now >= least {
		return nil
	}
	return n.set(least)
}

// set writes a number that is another.
func (n number) set(to int) error {
	if now, err := n.now(); err == nil && now == to {
		return nil
	}
	if err := n.write(n.path, strconv.Itoa(to)); err != nil {
		return fmt.Errorf("set to %d: %w", to, err)
	}
	return nil
}

func (n number) now() (int, error) {
	text, err := n.read(n.path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}
