// Package filter is what the node's packet filter has of pods: masquerading, by
// nftables (package nft) or iptables (package iptables), and the check that pods
// send from their own addresses only. It chooses between the two and sees to it
// that what is there stays there:
//
//	bridge ──Pod──▶ record on /run ──▶ nftables elements or iptables rules
//	                  └──Repair──▶ the same, when somebody flushed them
//
// A firewall that is loaded anew takes all rules away ("nft flush ruleset", which
// is how Debian's nftables.service begins), and the kernel keeps nothing that they
// could be made of again. So every pod has a record (record.go), which Add writes
// first and Remove deletes last: of what has no record there is nothing. Whoever
// finds rules missing that are not one pod's makes all pods' anew: the next Add,
// GC, and fairlead node, which looks all the time.
package filter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"

	"github.com/fairlead/fairlead/cni/iptables"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/nft"
)

// What masquerades. The reference plugin, left to choose, takes iptables where
// there is one; nftables costs a hundredth of it.
const (
	NFTables = "nftables"
	IPTables = "iptables"
)

// Pod is what the packet filter is told of one interface of one pod.
type Pod struct {
	Owner mode.Owner   `json:"owner"`
	Port  string       `json:"port"`  // name of the host's end
	MAC   MAC          `json:"mac"`   // of the pod's end
	Addrs []netip.Addr `json:"addrs"` // of the pod

	CheckSource bool `json:"checkSource"` // it sends from MAC and Addrs only

	Masquerade bool           `json:"masquerade"` // what it sends leaves with the node's address
	Spared     []netip.Prefix `json:"spared"`     // but to these
	Backend    string         `json:"backend"`    // NFTables, IPTables; "": the first that the kernel has
}

// Filter is the packet filter of a node.
type Filter struct {
	host    *link.NS
	conn    *nft.Conn // nil until the first use
	records records
}

// With runs do with the packet filter of the namespace host, which must be the
// calling thread's.
//
// It is best ended after everything else: the kernel waits long before it frees
// elements (see nft.Open) and interfaces, and so for both at the same time.
func With(host *link.NS, do func(*Filter) error) error {
	dir, err := recordsDir()
	if err != nil {
		return err
	}
	f := Filter{host: host, records: records{dir}}
	defer f.close()
	return do(&f)
}

func (f *Filter) close() {
	if f.conn != nil {
		f.conn.Close()
	}
}

// nft runs change with a connection to nftables.
func (f *Filter) nft(change func(*nft.Conn) error) error {
	if f.conn == nil {
		conn, err := nft.Open()
		if err != nil {
			return err
		}
		f.conn = conn
	}
	return change(f.conn)
}

// Add tells the packet filter of a pod. Its addresses are taken from pods that had
// them before and whose DEL was lost. When it fails, Remove takes back what it did.
func (f *Filter) Add(p Pod) error {
	if !p.Masquerade || p.Backend == IPTables { // else it is part of masquerading them
		if err := supported(f.nft(func(c *nft.Conn) error { return c.Release(p.Addrs) })); err != nil {
			return err
		}
	}
	if !p.CheckSource && !p.Masquerade {
		return nil
	}
	made, err := f.put(p)
	if errors.Is(err, nft.ErrUnsupported) && p.Masquerade && p.Backend == "" {
		p.Backend = IPTables
		made, err = f.put(p)
	}
	if err != nil || !made {
		return err
	}
	return f.Repair()
}

// put writes the record and does what it says. It reports whether it had to make
// what all pods need: this is the first one, or somebody removed it.
func (f *Filter) put(p Pod) (made bool, err error) {
	if p.Backend == "" {
		p.Backend = NFTables
	}
	if err := f.records.write(p); err != nil {
		return false, err
	}
	return f.program(p)
}

func (f *Filter) program(p Pod) (made bool, err error) {
	if p.CheckSource {
		err := f.nft(func(c *nft.Conn) (err error) {
			made, err = c.CheckSource(p.Owner, p.Port, net.HardwareAddr(p.MAC), p.Addrs)
			return err
		})
		if err != nil {
			return false, err
		}
	}
	var first bool
	switch {
	case !p.Masquerade:
	case p.Backend == IPTables:
		first, err = iptables.Masquerade(p.Owner, p.Addrs, p.Spared)
	default:
		err = f.nft(func(c *nft.Conn) (err error) {
			first, err = c.Masquerade(p.Owner, p.Addrs, p.Spared)
			return err
		})
	}
	return made || first, err
}

// Record returns what Add was told of a pod, the zero Pod if nothing.
func (f *Filter) Record(owner mode.Owner) (Pod, error) { return f.records.read(owner) }

// Remove has the packet filter forget a pod. It succeeds if it knows of none.
// There may be rules of iptables without a record that says so if byIPTables.
func (f *Filter) Remove(owner mode.Owner, byIPTables bool) error {
	record, err := f.records.read(owner)
	if err != nil {
		return err
	}
	unlock, err := f.records.lock(shared)
	if err != nil {
		return err
	}
	defer unlock()
	stopped := f.nft(func(c *nft.Conn) error {
		return errors.Join(c.StopMasquerade(owner), c.StopCheck(owner))
	})
	byIPTables = byIPTables || record.Backend == IPTables || errors.Is(stopped, nft.ErrUnsupported)
	failed := []error{supported(stopped)}
	if byIPTables {
		failed = append(failed, supported(iptables.Stop(owner)))
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return f.records.remove(owner)
}

// Collect has the packet filter forget the pods of a network that are not to be
// kept. For byIPTables see Remove.
func (f *Filter) Collect(network string, keep []mode.Owner, byIPTables bool) error {
	unlock, err := f.records.lock(shared)
	if err != nil {
		return err
	}
	defer unlock()
	pods, unreadable := f.records.list()
	for _, p := range pods {
		byIPTables = byIPTables || p.Owner.Network == network && p.Backend == IPTables
	}
	collected := f.nft(func(c *nft.Conn) error { return c.Collect(network, keep) })
	failed := []error{unreadable, supported(collected)}
	if byIPTables || errors.Is(collected, nft.ErrUnsupported) {
		failed = append(failed, supported(iptables.Collect(network, keep)))
	}
	if err := errors.Join(failed...); err != nil {
		return err // the records say what is left
	}
	return f.records.collect(network, keep)
}

// Check returns, in words, what the packet filter does not have of a pod. A pod
// that is masqueraded by the other backend than its own is masqueraded: the
// configuration was changed since.
func (f *Filter) Check(p Pod) (differences []string, err error) {
	if p.CheckSource {
		err := f.nft(func(c *nft.Conn) (err error) {
			differences, err = c.VerifySource(p.Owner, p.Port, net.HardwareAddr(p.MAC), p.Addrs)
			return err
		})
		if errors.Is(err, nft.ErrUnsupported) {
			differences, err = []string{fmt.Sprintf("source of %s is not checked: %v", p.Port, nft.ErrUnsupported)}, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if !p.Masquerade || len(p.Addrs) == 0 {
		return differences, nil
	}
	masquerade, err := f.checkMasquerade(p)
	return append(differences, masquerade...), err
}

func (f *Filter) checkMasquerade(p Pod) (byNFTables []string, err error) {
	err = f.nft(func(c *nft.Conn) (err error) {
		byNFTables, err = c.VerifyMasquerade(p.Owner, p.Addrs, p.Spared)
		return err
	})
	unsupported := errors.Is(err, nft.ErrUnsupported)
	if err != nil && !unsupported || err == nil && len(byNFTables) == 0 {
		return nil, err
	}
	byIPTables, err := iptables.Verify(p.Owner, p.Addrs, p.Spared)
	if errors.Is(err, exec.ErrNotFound) && !unsupported && p.Backend != IPTables {
		return byNFTables, nil
	}
	if err != nil || len(byIPTables) == 0 || unsupported || p.Backend == IPTables {
		return byIPTables, err
	}
	return byNFTables, nil
}

// Repair makes what records say that there is and is not, because somebody else
// removed it. Where nothing is missing it changes nothing. It goes on after a pod
// whose could not be made, and reports all errors.
func (f *Filter) Repair() error {
	if there, err := f.records.exist(); err != nil || !there {
		return err
	}
	unlock, err := f.records.lock(exclusive) // no pod is removed meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	pods, unreadable := f.records.list()
	live, err := f.ports()
	if err != nil {
		return err
	}
	failed := []error{unreadable}
	for _, p := range pods {
		if live[p.Port] { // else its DEL was lost, and GC comes
			failed = append(failed, f.repair(p))
		}
	}
	return errors.Join(failed...)
}

// ports are the names of the host's interfaces.
func (f *Filter) ports() (map[string]bool, error) {
	devices, err := f.host.Devices()
	names := make(map[string]bool, len(devices))
	for _, d := range devices {
		names[d.Name] = true
	}
	return names, err
}

// repair leaves alone what is there, whoever's: pods come latest first, so that
// an address is its last owner's.
func (f *Filter) repair(p Pod) error {
	return errors.Join(f.repairSource(p), f.repairMasquerade(p))
}

func (f *Filter) repairSource(p Pod) error {
	if !p.CheckSource {
		return nil
	}
	return f.nft(func(c *nft.Conn) error { return c.RepairSource(p.Owner, p.Port, net.HardwareAddr(p.MAC), p.Addrs) })
}

func (f *Filter) repairMasquerade(p Pod) error {
	if !p.Masquerade {
		return nil
	}
	if p.Backend == IPTables {
		return iptables.Repair(p.Owner, p.Addrs, p.Spared)
	}
	return f.nft(func(c *nft.Conn) error { return c.RepairMasquerade(p.Owner, p.Addrs, p.Spared) })
}

// supported is err, but none where there is nothing to remove because the node
// cannot have had it.
func supported(err error) error {
	if errors.Is(err, nft.ErrUnsupported) || errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	return err
}
