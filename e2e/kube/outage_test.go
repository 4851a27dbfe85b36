package kube_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/lab"
)

// While the API server is dead traffic goes on, and when it is back so do changes.
func TestAPIServerKilled(t *testing.T) {
	c := newCluster(t)
	c.must(c.api.Kill())
	c.checkSpread(c.pods...)
	c.untilLogged("the API server is not followed") // refused, reset or EOF, as it happens

	c.must(c.api.Restart(t.Context()))
	c.checkSpread(c.pods...)
	c.serve("web", c.pods[2])
	c.untilOnly(c.pods[2])
	c.untilLogged("followed again")
}

// Proxies that start before the API server keep trying, say so once, and serve
// as soon as it is there.
func TestAPIServerComesLater(t *testing.T) {
	c := newClusterBehind(t, (*kube.Relay).Shut)
	const said = "the API server is not followed"
	c.untilLogged(said)
	c.must(c.relay.Open())
	c.waitFor(lab.NewService("web", webIPv4, webIPv6))
	c.checkSpread(c.pods...)
	if log := c.log(); strings.Count(log, said) != 1 || !strings.Contains(log, "connection refused") {
		t.Errorf("the log does not say once that the connection is refused:\n%s", log)
	}
}

// An API server that hangs, so that connections stay open and nothing comes, is
// noticed, changes nothing, and is followed again as soon as it goes on.
func TestAPIServerHangs(t *testing.T) {
	// client-go asks a silent connection after 30 s whether it is alive, and waits
	// for 15 s.
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	c := newCluster(t)
	c.relay.Hang()
	c.serve("web", c.pods[2])
	c.untilLogged("the API server is not followed")
	c.checkSpread(c.pods...) // as before

	c.relay.Resume()
	c.untilOnly(c.pods[2])
	c.untilLogged("followed again")
}

// Proxies that start while the API server hangs say so, and serve as soon as it
// goes on.
func TestAPIServerHangsAtFirst(t *testing.T) {
	c := newClusterBehind(t, (*kube.Relay).Hang)
	c.untilLogged("the API server is not followed")
	c.relay.Resume()
	c.waitFor(lab.NewService("web", webIPv4, webIPv6))
	c.checkSpread(c.pods...)
}

// Nodes that boot while the API server is away have nothing in their kernels. They
// serve what was known before, say so, and follow as soon as they can.
func TestBootWithoutAPIServer(t *testing.T) {
	c := newCluster(t)
	c.must(c.api.Kill())
	for _, n := range c.Nodes {
		c.must(c.RestartProxy(n, unix.SIGTERM, "iptables"))
		for _, iptables := range []string{"iptables", "ip6tables"} {
			for _, table := range []string{"nat", "filter", "mangle"} {
				_, err := n.Output(t.Context(), "sh", "-ec", fmt.Sprintf("%[1]s -t %[2]s -F; %[1]s -t %[2]s -X", iptables, table))
				c.must(err)
			}
		}
	}
	c.untilLogged("what counts is what it said before")
	c.waitFor(lab.NewService("web", webIPv4, webIPv6))
	c.checkSpread(c.pods...)

	c.must(c.api.Restart(t.Context()))
	c.serve("web", c.pods[2])
	c.untilOnly(c.pods[2])
	c.untilLogged("followed again")
}

// A node whose clock is an hour slow does not trust the API server's new certificate,
// which is half an hour old; nor does any node one that has expired. It keeps what it
// has. (The clocks of a machine's namespaces cannot differ; the certificate does.)
func TestClockWrong(t *testing.T) {
	for name, from := range map[string]time.Duration{"not valid yet": 30 * time.Minute, "expired": -validFor - time.Hour} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.restartCertified(time.Now().Add(from))
			c.untilLogged("the API server is not followed")
			c.serve("web", c.pods[2])
			c.checkSpread(c.pods...) // as before

			c.restartCertified(time.Now().Add(-30 * time.Minute)) // it is right again
			c.untilOnly(c.pods[2])
			c.untilLogged("followed again")
		})
	}
}

// validFor is for how long a certificate is.
const validFor = 24 * time.Hour

// restartCertified restarts the API server with a certificate that is valid from
// a time on.
func (c *cluster) restartCertified(from time.Time) {
	c.t.Helper()
	c.must(c.api.Kill())
	c.must(c.api.Certify(from, from.Add(validFor)))
	c.must(c.api.Restart(c.t.Context()))
}

// Connections to the API server break again and again while things change, and
// etcd forgets what was before.
func TestWatchCut(t *testing.T) {
	c := newCluster(t)
	for i := range 9 {
		pod := c.pods[i%len(c.pods)]
		c.relay.Cut()
		c.must(c.api.Compact(t.Context()))
		c.serve("web", pod)
		c.untilOnly(pod)
	}
}

// A proxy that was cut off for so long that the API server has forgotten what
// happened in between (410 Gone) finds out what is gone, changed and new.
func TestForgottenPast(t *testing.T) {
	c := newCluster(t)
	gone := c.create("gone", "10.96.0.20", "fd00:10:96::20")
	c.serve("gone", c.pods[0])
	c.waitFor(gone)

	c.relay.Shut()
	c.delete("gone")
	c.serve("web", c.pods[1])
	made := c.create("made", "10.96.0.30", "fd00:10:96::30")
	c.serve("made", c.pods[2])
	c.must(c.api.Kill())
	c.must(c.api.Restart(t.Context()))
	c.must(c.api.Compact(t.Context()))
	wantForgotten(t, c.api, gone.ResourceVersion)
	c.checkSpread(c.pods...) // as before

	c.must(c.relay.Open())
	c.waitFor(made)
	c.untilOnly(c.pods[1])
	c.until(lab.VIPs(gone)[0], func(_ echo.Reply, err error) bool { return err != nil })
}
