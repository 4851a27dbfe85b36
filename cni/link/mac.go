package link

import (
	"bytes"
	"fmt"
	"net"
)

// ParseMAC reads the hardware address of an interface, which is that of one host
// and not of a group.
func ParseMAC(text string) (net.HardwareAddr, error) {
	const group = 1 // of the first octet, IEEE 802 section 8.2
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&group != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return nil, fmt.Errorf("%q is not allowed: it must be the hardware address of one host, like 0a:58:0a:f4:01:05", text)
	}
	return mac, nil
}
