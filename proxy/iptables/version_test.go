package iptables

import (
	"strings"
	"testing"
)

func TestVersionOf(t *testing.T) {
	for says, want := range map[string]struct {
		text        string
		nft, random bool
	}{
		"iptables v1.8.9 (nf_tables)": {"1.8.9", true, true},
		"ip6tables v1.8.10 (legacy)":  {"1.8.10", false, true},
		"iptables v1.6.2":             {"1.6.2", false, true},
		"iptables v1.4.21":            {"1.4.21", false, false},
	} {
		v, err := versionOf(fakeIPTables(t, "echo '"+says+"'"))
		if err != nil || v.String() != want.text || v.nft != want.nft || v.atLeast(1, 6, 2) != want.random {
			t.Errorf("%q: got %+v, %v; want %+v", says, v, err, want)
		}
	}
	for does, want := range map[string]string{
		"echo what": `it says "what\n"`,
		"exit 3":    "exit status 3",
	} {
		if _, err := versionOf(fakeIPTables(t, does)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", does, err, want)
		}
	}
}
