package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// WaitRunning returns an interface once it is up in fact, and a bridge whose
// port it is forwards what comes in by it. It is an error if that takes longer
// than limit.
//
// The kernel comes to it later than the carrier does, on a worker. From 6.9 on
// it comes to it at once for an interface that somebody asks for
// (linkwatch_sync_dev), so that the first look is the only one; on kernels
// before, news of interfaces is awaited.
func (ns *NS) WaitRunning(name string, limit time.Duration) (d Device, err error) {
	running := func() (bool, error) {
		d, err = ns.Device(name)
		return d.Running, err
	}
	in, err := ns.await(unix.RTNLGRP_LINK, limit, running)
	if err == nil && !in {
		err = fmt.Errorf("wait %v until %s runs: its link is down", limit, name)
	}
	if err != nil {
		return Device{}, err
	}
	return d, nil
}

// WaitUnique returns once the kernel has made sure that no other host on the link
// has one of an interface's IPv6 addresses (RFC 4862, section 5.4). It is an error
// if one has, or if it takes longer than limit.
func (ns *NS) WaitUnique(d Device, limit time.Duration) error {
	unique := func() (bool, error) {
		addrs, err := ns.Addresses(d)
		if err != nil {
			return false, err
		}
		waiting := false
		for _, a := range addrs {
			if a.read.Flags&unix.IFA_F_DADFAILED != 0 {
				return false, fmt.Errorf("address %s of %s: another host on the link has it", a, d.Name)
			}
			waiting = waiting || a.read.Flags&unix.IFA_F_TENTATIVE != 0
		}
		return !waiting, nil
	}
	in, err := ns.await(unix.RTNLGRP_IPV6_IFADDR, limit, unique)
	if err == nil && !in {
		err = fmt.Errorf("wait %v until the addresses of %s are known to be unique: they are not yet", limit, d.Name)
	}
	return err
}

// await looks at something again with each news of a group until it is done, or
// limit is over, and reports whether it came to be done.
func (ns *NS) await(group uint, limit time.Duration, done func() (bool, error)) (bool, error) {
	if ok, err := done(); ok || err != nil {
		return ok, err
	}
	news, err := nl.SubscribeAt(ns.target(), netns.None(), unix.NETLINK_ROUTE, group)
	if err != nil {
		return false, fmt.Errorf("listen to news of interfaces: %w", err)
	}
	defer news.Close()

	for end := time.Now().Add(limit); ; {
		// Also looked at after the subscription and before any news: it may have
		// come to be done in between.
		if ok, err := done(); ok || err != nil {
			return ok, err
		}
		left := unix.NsecToTimeval(time.Until(end).Nanoseconds())
		if left.Nano() <= 0 {
			return false, nil
		}
		_ = news.SetReceiveTimeout(&left) // stores the number, cannot fail
		// Too much news to keep (ENOBUFS) is news.
		if _, _, err := news.Receive(); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
			return false, fmt.Errorf("listen to news of interfaces: %w", err)
		}
	}
}
