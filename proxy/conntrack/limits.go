package conntrack

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
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

const (
	sysctls  = "/proc/sys/net/netfilter/nf_conntrack_"
	hashsize = "/sys/module/nf_conntrack/parameters/hashsize"
)

// Apply sets the limits in the network namespace of the calling thread. That of
// flows is only ever raised; it is the whole machine's, and only the first network
// namespace may set it. What can be set is set, whatever the error says of others.
func (l Limits) Apply() error {
	errs := []error{
		raise(sysctls+"max", l.Flows),
		raise(hashsize, l.Flows/4), // as many flows in a bucket as the kernel's own default has
	}
	for name, timeout := range map[string]time.Duration{
		"tcp_timeout_established": l.TCPEstablished,
		"tcp_timeout_close_wait":  l.TCPCloseWait,
		"udp_timeout":             l.UDP,
		"udp_timeout_stream":      l.UDPStream,
	} {
		if timeout > 0 {
			errs = append(errs, set(sysctls+name, int(timeout.Seconds())))
		}
	}
	if l.TCPBeLiberal {
		errs = append(errs, set(sysctls+"tcp_be_liberal", 1))
	}
	return errors.Join(errs...)
}

// raise sets a value that is lower.
func raise(path string, least int) error {
	now, err := value(path)
	if least == 0 || err == nil && now >= least {
		return nil
	}
	return set(path, least)
}

// set writes a value that is another.
func set(path string, to int) error {
	if now, err := value(path); err == nil && now == to {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(to)), 0); err != nil {
		return fmt.Errorf("set to %d: %w", to, err)
	}
	return nil
}

func value(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
