package iptables

import (
	"strings"
	"testing"
)

// FuzzParse reads what iptables-save may print where others have rules too. Only what
// is ours is kept, and the script that removes it names nothing else.
func FuzzParse(f *testing.F) {
	for _, table := range tables() {
		f.Add(Render(table, false, opts).String())
	}
	f.Add("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -m comment --comment \"a -j FAIRLEAD-X\" -j KUBE-SERVICES\nCOMMIT\n")
	f.Add("-A FAIRLEAD-X -j RETURN\n:FAIRLEAD-Y - [0:0]\n*nat\n*nat\n")
	f.Fuzz(func(t *testing.T, saved string) {
		have, err := parse([]byte(saved))
		if err != nil {
			return
		}
		for table, chains := range have {
			for chain, rules := range chains {
				for _, rule := range rules {
					if !ours(chain) && !strings.Contains(rule, prefix) {
						t.Errorf("table %s: %q of %s is taken for ours", table, rule, chain)
					}
				}
			}
		}
		for line := range strings.Lines(newScript(have, nil).String()) {
			if !strings.Contains(line, prefix) && line != "COMMIT\n" && !strings.HasPrefix(line, "*") {
				t.Errorf("to remove what is ours, %q", line)
			}
		}
	})
}
