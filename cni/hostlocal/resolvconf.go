package hostlocal

import (
	"bufio"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// readResolvConf reads a file of the form of resolv.conf(5); no path is no
// settings. Keywords that a CNI result has no place for are passed over.
func readResolvConf(path string) (types.DNS, error) {
	var dns types.DNS
	if path == "" {
		return dns, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return dns, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] { // a comment is none of these
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, lines.Err()
}
