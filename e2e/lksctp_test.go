package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/sctp"
)

// Programs that are not ours are peers by a Service: lksctp-tools' own test, whose sockets
// are of the other style (one to many, RFC 6458 section 3). It sends messages of 1 byte to
// 32 KiB, of which the kernel hands on several packets as one.
func TestLKSCTP(t *testing.T) {
	if sctp.Implementation() != "kernel" {
		t.Skip("the kernel has no SCTP")
	}
	for _, mode := range []string{"iptables", "ebpf"} {
		t.Run(mode, func(t *testing.T) {
			c := labtest.NewCluster(t, lab.Options{Nodes: 2, Mode: mode, BinDir: programs.Dir(t)})
			svc := lab.NewService("lksctp", "10.96.0.30", "fd00:10:96::30")
			svc.Spec.Ports = []corev1.ServicePort{{Name: "sctp", Protocol: corev1.ProtocolSCTP, Port: 80, TargetPort: intstr.FromInt32(lksctpPort)}}
			server := c.Web[1] // on the other node
			for _, a := range server.Addrs {
				listener := startPeer(t, server.NS(), "-H", a.String(), "-P", strconv.Itoa(lksctpPort), "-l")
				listener.await(t, "Server: Receiving")
				if err := c.Apply(append(lab.Slices(svc, server), svc)...); err != nil {
					t.Fatal(err)
				}
				for _, vip := range lab.VIPs(svc) {
					if vip.Addr.Addr().Is4() == a.Is4() {
						sendMessages(t, c.Client.NS(), ownAddr(c.Client, vip), vip.Addr, listener)
					}
				}
			}
		})
	}
}

const (
	lksctpPort = 9000
	// What -c 4 sends, in bytes.
	lksctpBytes = 1 + 1000 + 2000 + 3000 + 5000 + 10000 + 15000 + 20000 + 25000 + 32768
)

// sendMessages has all messages sent, and wants them to come.
func sendMessages(t *testing.T, ns *netns.NS, from netip.Addr, to netip.AddrPort, listener *peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // until the Service is programmed
		err := ns.Do(func() error {
			conn, err := sctp.Dial(ctx, netip.AddrPort{}, to)
			if err == nil {
				err = conn.Close()
			}
			return err
		})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	listener.await(t, over)
	said, err := ns.Output(ctx, lksctp, "-H", from.String(), "-P", "0", "-h", to.Addr().String(), "-p", fmt.Sprint(to.Port()), "-s", "-c", "4", "-x", "1")
	if err != nil {
		t.Errorf("send to %s: %v\n%s", to, err, said)
	}
	listener.await(t, over)
	if came := listener.bytes(); came != lksctpBytes {
		t.Errorf("to %s %d bytes were sent, %d came:\n%s\n%s", to, lksctpBytes, came, said, listener)
	}
}

const lksctp = "sctp_test"

// over is what a listener prints when an association has ended as it should.
const over = "SHUTDOWN_COMPLETE"

// peer is a program of lksctp-tools that runs.
type peer struct {
	labtest.Log     // what it prints
	awaited     int // how much of that
}

// startPeer starts one that goes with the test.
func startPeer(t *testing.T, ns *netns.NS, args ...string) *peer {
	t.Helper()
	p := &peer{}
	cmd := exec.Command(lksctp, args...)
	cmd.Stdout, cmd.Stderr = p, p
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

// await waits until it has printed words, after those that were awaited before.
func (p *peer) await(t *testing.T, words string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if at := strings.Index(p.String()[p.awaited:], words); at >= 0 {
			p.awaited += at + len(words)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not say %q:\n%s", lksctp, words, p)
		}
	}
}

var lksctpData = regexp.MustCompile(`Data (\d+) bytes`)

// bytes is how many it has received.
func (p *peer) bytes() (sum int) {
	for _, m := range lksctpData.FindAllStringSubmatch(p.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		sum += n
	}
	return sum
}
