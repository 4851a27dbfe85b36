package nfacct_test

import (
	"errors"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/nfacct"
)

// A counter counts while rules add to it, stays when they go, and can only then be
// deleted.
func TestCounters(t *testing.T) {
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	do := func(what func() error) {
		t.Helper()
		if err := ns.Do(what); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want map[string]uint64) {
		t.Helper()
		do(func() error {
			got, err := nfacct.List()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
			return err
		})
	}
	long := "a-name-as-long-as-one-can-be-31"
	do(func() error { return nfacct.Add("one", long) })
	want(map[string]uint64{"one": 0, long: 0})

	ns.RunT(t, "iptables", "-A", "OUTPUT", "-p", "udp", "-m", "nfacct", "--nfacct-name", "one")
	do(func() error {
		conn, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("counted"))
		return err
	})
	want(map[string]uint64{"one": 1, long: 0})
	do(func() error { return nfacct.Add("one") })
	do(func() error {
		if err := nfacct.Delete("one", long); !errors.Is(err, nfacct.ErrInUse) {
			t.Errorf("delete a counter in use: %v", err)
		}
		return nil
	})
	want(map[string]uint64{"one": 1})

	ns.RunT(t, "iptables", "-F", "OUTPUT")
	want(map[string]uint64{"one": 1})
	do(func() error { return nfacct.Delete("one", "never-there") })
	want(map[string]uint64{})
}
