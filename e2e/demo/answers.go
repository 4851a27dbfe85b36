package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

// answers are the names of the pods that answered a row of connections.
type answers []string

// askTimes opens n connections, one after the other. Whoever answers must have
// seen the client's own address, unless it is the client.
func askTimes(ctx context.Context, client *lab.Pod, to echo.Endpoint, n int) (answers, error) {
	var a answers
	for range n {
		reply, err := client.Ask(ctx, to)
		if err != nil {
			return a, err
		}
		if reply.Name != client.Name {
			err = sawClient(reply, client)
		}
		if err != nil {
			return a, fmt.Errorf("%s %s: %w", to.Network, to.Addr, err)
		}
		a = append(a, reply.Name)
	}
	return a, nil
}

func (a answers) counts() map[string]int {
	counts := make(map[string]int)
	for _, name := range a {
		counts[name]++
	}
	return counts
}

// even checks that each of the pods answered as often.
func (a answers) even(pods []*lab.Pod) error {
	counts := a.counts()
	for _, p := range pods {
		if counts[p.Name] != len(a)/len(pods) {
			return fmt.Errorf("of %d connections %s, want %d each", len(a), a, len(a)/len(pods))
		}
	}
	return nil
}

// String is "web-1 4, web-2 4, web-3 4".
func (a answers) String() string {
	counts := a.counts()
	var words []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(words, ", ")
}

// order is "2 3 1 2 3 1", each digit what distinguishes the pod's name.
func (a answers) order() string {
	var digits []string
	for _, name := range a {
		digits = append(digits, name[strings.LastIndexByte(name, '-')+1:])
	}
	return strings.Join(digits, " ")
}
