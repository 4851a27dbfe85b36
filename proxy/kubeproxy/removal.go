package kubeproxy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// names and prefixes are of kube-proxy's chains, in mode iptables and, after the
// blank lines, in mode ipvs. KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT
// and KUBE-MARK-DROP are kubelet's, KUBE-ROUTER-… and others not even that.
var (
	names = []string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ",
		"KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",

		"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	prefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-", "KUBE-SEP-"}
)

func theirs(chain string) bool {
	return slices.Contains(names, chain) ||
		slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(chain, prefix) })
}

// removal turns what iptables-save printed into the input of iptables-restore
// --noflush that removes kube-proxy's chains, and the rules that lead to them, and
// says how many chains these are.
func removal(saved []byte) (script []byte, chains int) {
	var out bytes.Buffer
	var rules, flush, remove []string // of the table
	for line := range strings.Lines(string(saved)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			fmt.Fprintln(&out, line)
			rules, flush, remove = nil, nil, nil
		case strings.HasPrefix(line, ":"):
			chain, _, _ := strings.Cut(line[1:], " ")
			if theirs(chain) {
				flush = append(flush, ":"+chain+" - [0:0]") // it is there: this empties it
				remove = append(remove, "-X "+chain)
			}
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			if !theirs(chain) && theirs(target(rule)) {
				rules = append(rules, "-D "+chain+" "+rule)
			}
		case line == "COMMIT":
			chains += len(remove)
			for _, l := range slices.Concat(flush, rules, remove) {
				fmt.Fprintln(&out, l)
			}
			fmt.Fprintln(&out, line)
		}
	}
	return out.Bytes(), chains
}

// target is the chain that a rule leads to, "" if to none.
func target(rule string) string {
	words := strings.Fields(rule)
	for i := len(words) - 2; i >= 0; i-- {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}
