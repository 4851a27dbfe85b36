package iptables

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/fairlead/fairlead/cni/host/command"
)

// version is what iptables says of itself.
type version struct {
	numbers []int // major, minor, patch
	nft     bool  // the rules are in nf_tables
}

// versionLine is "iptables v1.8.9 (nf_tables)". Before 1.8 there was one variant, which
// is not named.
var versionLine = regexp.MustCompile(`v([0-9]+)\.([0-9]+)\.([0-9]+)(?: \((\w+)\))?`)

// versionOf asks a command.
func versionOf(path string) (version, error) {
	out, err := command.Command{Name: path, Args: []string{"--version"}, Within: time.Minute}.Run(context.Background())
	if err != nil {
		return version{}, fmt.Errorf("ask iptables for its version: %w", err)
	}
	found := versionLine.FindSubmatch(out)
	if found == nil {
		return version{}, fmt.Errorf("ask %s for its version: it says %q", path, out)
	}
	v := version{nft: string(found[4]) == "nf_tables"}
	for _, digits := range found[1:4] {
		n, err := strconv.Atoi(string(digits))
		if err != nil {
			return version{}, fmt.Errorf("ask %s for its version: it says %q: %w", path, out, err)
		}
		v.numbers = append(v.numbers, n)
	}
	return v, nil
}

func (v version) atLeast(numbers ...int) bool { return slices.Compare(v.numbers, numbers) >= 0 }

func (v version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.numbers[0], v.numbers[1], v.numbers[2])
}
