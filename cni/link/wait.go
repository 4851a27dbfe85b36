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
func (ns *NS) WaitRunning(name string, limit time.Duration) (Device, error) {
	d, err := ns.Device(name)
	if err != nil || d.Running {
		return d, err
	}
	news, err := nl.SubscribeAt(ns.target(), netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return Device{}, fmt.Errorf("listen to news of interfaces: %w", err)
	}
	defer news.Close()

	for end := time.Now().Add(limit); ; {
		// Also looked at after the subscription and before any news: it may have
		// come up in between.
		d, err := ns.Device(name)
		if err != nil || d.Running {
			return d, err
		}
		left := unix.NsecToTimeval(time.Until(end).Nanoseconds())
		if left.Nano() <= 0 {
			return Device{}, fmt.Errorf("wait %v until %s runs: its link is down", limit, name)
		}
		_ = news.SetReceiveTimeout(&left) // stores the number, cannot fail
		// Too much news to keep (ENOBUFS) is news.
		if _, _, err := news.Receive(); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
			return Device{}, fmt.Errorf("listen to news of interfaces: %w", err)
		}
	}
}
