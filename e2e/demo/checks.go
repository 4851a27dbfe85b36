package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

// onOneNode: a pod reaches a pod of its own node.
func (s *Scene) onOneNode(ctx context.Context) (string, error) {
	return reaches(ctx, s.Clients[0], s.Web[0])
}

// routes: the first node knows the way to the pods of every other one.
func (s *Scene) routes(ctx context.Context) (string, error) {
	node := s.Lab.Nodes[0]
	var ways []string
	for _, other := range s.Lab.Nodes[1:] {
		for i, family := range []string{"-4", "-6"} {
			out, err := node.Output(ctx, "ip", family, "route", "show", other.PodCIDRs[i].String())
			if err != nil {
				return "", err
			}
			way, _, ok := strings.Cut(out, " proto")
			if !ok {
				return "", fmt.Errorf("%s has no route to %s of %s", node.Name, other.PodCIDRs[i], other.Name)
			}
			ways = append(ways, way)
		}
	}
	return fmt.Sprintf("on %s: %s", node.Name, strings.Join(ways, ", ")), nil
}

// acrossNodes: a pod reaches a pod of another node.
func (s *Scene) acrossNodes(ctx context.Context) (string, error) {
	return reaches(ctx, s.Clients[0], s.Web[1])
}

// reaches checks that a pod reaches another over every protocol and family, and
// that the other sees it by its own address: no NAT.
func reaches(ctx context.Context, from, to *lab.Pod) (string, error) {
	for _, at := range to.Endpoints() {
		reply, err := from.Ask(ctx, at)
		if err != nil {
			return "", err
		}
		if reply.Name != to.Name {
			return "", fmt.Errorf("%s %s is answered by %s instead of %s", at.Network, at.Addr, reply.Name, to.Name)
		}
		if err := sawClient(reply, from); err != nil {
			return "", fmt.Errorf("%s %s: %w", at.Network, at.Addr, err)
		}
	}
	return fmt.Sprintf("%s to %s over %s: it saw %s and %s, no NAT",
		from.Name, to.Name, join(lab.Networks[:]), from.IPv4(), from.IPv6()), nil
}

// sawClient checks that the server saw the client's own address.
func sawClient(reply echo.Reply, client *lab.Pod) error {
	if got, want := reply.Client.Addr(), own(client, reply.Server.Addr()); got != want {
		return fmt.Errorf("%s saw %s instead of %s", reply.Name, got, want)
	}
	return nil
}

// connections is how many connections in a row show the spread.
const connections = 4 * backends

// spread checks that of connections opened one after the other to a virtual IP
// each backend answers as many. It enters what it counts over IPv4.
func (s *Scene) spread(ctx context.Context, vip echo.Endpoint, spread map[string]map[string]int) (string, error) {
	answers, err := askTimes(ctx, s.Clients[0], vip, connections)
	if err != nil {
		return "", err
	}
	if vip.Addr.Addr().Is4() {
		spread[vip.Network] = answers.counts()
	}
	if err := answers.even(s.Web); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s answered by %s, in turn %s", vip.Addr, answers, answers.order()), nil
}

// fromEveryNode: each node's proxy serves the pods of its node.
func (s *Scene) fromEveryNode(ctx context.Context) (string, error) {
	for _, client := range s.Clients {
		for _, vip := range lab.VIPs(s.web) {
			answers, err := askTimes(ctx, client, vip, backends)
			if err != nil {
				return "", fmt.Errorf("%s: %w", client.Node.Name, err)
			}
			if err := answers.even(s.Web); err != nil {
				return "", fmt.Errorf("%s, %s %s: %w", client.Node.Name, vip.Network, vip.Addr, err)
			}
		}
	}
	return fmt.Sprintf("each of %d clients reached each backend over %s, IPv4 and IPv6",
		len(s.Clients), join(lab.Networks[:])), nil
}

// refused: a Service without endpoints says so, instead of letting its clients
// run into their timeouts.
func (s *Scene) refused(ctx context.Context) (string, error) {
	refused := func(_ echo.Reply, err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
	for _, vip := range lab.VIPs(s.idle) {
		if err := s.Clients[0].AskUntil(ctx, vip, refused); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s refused the connection over %s", join(s.idle.Spec.ClusterIPs), join(lab.Networks[:])), nil
}

// hairpin: a pod that is a backend itself reaches all backends by the virtual
// IP, itself as well. (It then sees an address of the node: a packet from itself
// it would drop.)
func (s *Scene) hairpin(ctx context.Context) (string, error) {
	for _, vip := range lab.VIPs(s.web) {
		answers, err := askTimes(ctx, s.Web[0], vip, backends)
		if err != nil {
			return "", err
		}
		if err := answers.even(s.Web); err != nil {
			return "", fmt.Errorf("%s %s: %w", vip.Network, vip.Addr, err)
		}
	}
	return fmt.Sprintf("%s answered itself once in %d connections over %s, IPv4 and IPv6",
		s.Web[0].Name, backends, join(lab.Networks[:])), nil
}

// own is the pod's address in the family of another.
func own(p *lab.Pod, other netip.Addr) netip.Addr {
	if other.Is4() {
		return p.IPv4()
	}
	return p.IPv6()
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// join makes "a, b and c" of words.
func join(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
