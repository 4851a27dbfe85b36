package link

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Veth is a pair of interfaces in two namespaces: what goes in at one end comes
// out at the other.
type Veth struct {
	Name   string // of the end in the namespace where it is made
	MAC    net.HardwareAddr
	Master Device // the bridge whose port this end is
	Group  uint32 // of this end; 0: the default
	MTU    int    // of both ends; 0: the kernel's default

	Peer    string // name of the other end
	PeerNS  *NS
	PeerMAC net.HardwareAddr
}

// AddVeth makes both ends where they belong, by one message: this end up and
// already a port, the other end down, so that it can be given its addresses
// first. When it fails there is neither. The error wraps unix.EEXIST if either
// name is taken.
//
// Hardware addresses are given and not left to the kernel, because one that the
// kernel chose counts as provisional: systemd-udevd replaces it at its leisure
// (MACAddressPolicy=persistent), after it was reported to the runtime.
//
// Either end has one queue. More are never in use by default, but the kernel
// allocates one for each possible processor, for somebody to turn on with
// ethtool -L: with 64 processors a pair then takes four times as long to make.
func (ns *NS) AddVeth(v Veth) error {
	request, err := ns.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	if err != nil {
		return err
	}
	header := nl.NewIfInfomsg(unix.AF_UNSPEC)
	header.Flags, header.Change = unix.IFF_UP, unix.IFF_UP
	request.AddData(header)
	for _, attr := range v.attrs(v.Name, v.MAC) {
		request.AddData(attr)
	}
	request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.Master.Index))))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(v.Group)))
	request.AddData(v.info())
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("add veth %s with peer %s: %w", v.Name, v.Peer, err)
	}
	return nil
}

// info is the part of the message that makes it a veth: its other end, itself
// described like an interface.
func (v Veth) info() *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, attr := range v.attrs(v.Peer, v.PeerMAC) {
		peer.AddChild(attr)
	}
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.PeerNS.file)))
	return info
}

func (v Veth) attrs(name string, mac net.HardwareAddr) []*nl.RtAttr {
	attrs := []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, mac),
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1)),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1)),
	}
	if v.MTU != 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU))))
	}
	return attrs
}
