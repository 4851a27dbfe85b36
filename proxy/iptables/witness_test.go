package iptables

import (
	"context"
	"testing"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// What others do to our rules is seen at once, and what they do to theirs is no reason
// to write anything. It does not take the look now and then.
func TestWatch(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		iptables := "iptables-" + n.variant
		table := resolved(3, 1)
		n.RunT(t, iptables, "-t", "nat", "-A", "POSTROUTING", "-s", "10.9.9.9", "-j", "ACCEPT")
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if err := n.Do(func() error { return n.backend.Watch(ctx) }); err != nil {
			t.Fatal(err)
		}
		n.mustSync(table, service.Change{})
		type row struct {
			name, command string
			intact        bool
		}
		rows := []row{
			{"nothing", "true", true},
			{"others' rules come", iptables + " -t nat -A POSTROUTING -s 10.9.9.8 -j ACCEPT", true},
			{"others' rules go", iptables + " -t nat -D POSTROUTING -s 10.9.9.9 -j ACCEPT", true},
			{"a rule that leads to us goes", iptables + " -t nat -F PREROUTING", false},
			{"one of IPv6", "ip6" + iptables[2:] + " -t nat -F OUTPUT", false},
			{"rules of ours go", iptables + " -t nat -F " + chainServices, false},
			{"a rule of ours goes", iptables + " -t nat -D " + chainServices + " 1", false},
			{"a rule comes into our chain", iptables + " -t nat -I " + chainServices + " -s 10.9.9.7 -j ACCEPT", n.variant == Legacy},
			{"that rule goes", iptables + " -t nat -F " + chainServices, false},
			{"all goes", iptables + " -t nat -F", false},
		}
		if n.variant == NFT {
			rows = append(rows, row{"rules of ours go, of which no news is kept", crowd("flush chain ip nat " + chainServices), false})
		}
		for _, tt := range rows {
			t.Run(tt.name, func(t *testing.T) {
				n.RunT(t, "sh", "-c", tt.command)
				if got := n.intactSoon(t); got != tt.intact {
					t.Errorf("intact: %v, want %v", got, tt.intact)
				}
				n.mustSync(table, service.Change{})
				if got := n.intactSoon(t); !got {
					t.Error("not intact after it was mended")
				}
			})
		}
	})
}

// crowd is a command that makes, in one step, more changes than a socket has room for
// news, and then another one.
func crowd(change string) string {
	return "{ echo 'add table ip crowd; add chain ip crowd crowd'; for i in $(seq 3000); do echo add rule ip crowd crowd counter; done; echo '" + change + "'; } | nft -f -"
}

// intactSoon asks for a moment whether somebody was seen: nf_tables tells a bit later.
func (n *node) intactSoon(t *testing.T) (got bool) {
	t.Helper()
	for range 20 {
		err := n.Do(func() (err error) {
			got, err = n.backend.Intact()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !got {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return got
}
