package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// StickyFor is how long a pod that went is remembered by its name.
const StickyFor = 24 * time.Hour

// former is what a pod had when its lease ended.
type former struct {
	Addrs []netip.Addr `json:"addrs"`
	// Freed is the moment, and no less than the position in any queue that Addrs
	// got then: an address behind it was held by another in the meantime.
	Freed int64 `json:"freed"`
}

// podText names an interface of a pod. It is what the functions below call a pod.
func podText(pod, ifName string) string { return pod + "\x00" + ifName }

func formerKey(pod string) []byte { return append([]byte{formerPrefix}, pod...) }

func expiryKey(freed int64, pod string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{expiryPrefix}, uint64(freed)), pod...)
}

// recall adds to wanted what the pod of the request had before, for the sets
// where nothing is wanted and the address is free and was nobody else's since. It
// forgets the pod: what matters is what it will have when it goes again.
func recall(tx Tx, req Request, stocks [][]*stock, wanted []netip.Addr) error {
	pod := podText(req.Pod, req.Owner.IfName)
	was, err := forget(tx, pod)
	if err != nil || req.Now.UnixNano()-was.Freed > int64(StickyFor) {
		return err
	}
	for i, set := range stocks {
		for _, addr := range was.Addrs {
			if wanted[i].IsValid() {
				break
			}
			free, err := isFreeSince(tx, set, addr, was.Freed)
			if err != nil {
				return err
			}
			if free {
				wanted[i] = addr
			}
		}
	}
	return nil
}

// isFreeSince says that one of the stocks can give addr, and that nobody freed it
// after that moment.
func isFreeSince(tx Tx, stocks []*stock, addr netip.Addr, moment int64) (bool, error) {
	for _, s := range stocks {
		if !s.canGive(addr) {
			continue
		}
		held, err := has(tx, addrKey(addr))
		if err != nil || held {
			return false, err
		}
		position, err := s.position(tx, addr)
		return position <= moment, err
	}
	return false, nil
}

// remember keeps what the pod of an ended lease had. It also forgets two pods
// whose time is over, so that there are never many of them and no call has to
// forget them all.
func remember(tx Tx, lease Lease, freed int64) error {
	for range 2 {
		if err := forgetExpired(tx, freed-int64(StickyFor)); err != nil {
			return err
		}
	}
	pod := podText(lease.Pod, lease.IfName)
	if _, err := forget(tx, pod); err != nil {
		return err
	}
	text, err := json.Marshal(former{Addrs: lease.Addrs, Freed: freed})
	if err != nil {
		return fmt.Errorf("encode what pod %s had: %w", lease.Pod, err)
	}
	if err := tx.Put(formerKey(pod), text); err != nil {
		return err
	}
	return tx.Put(expiryKey(freed, pod), nil)
}

// forget removes what is known of a pod and returns it.
func forget(tx Tx, pod string) (former, error) {
	var was former
	text, err := get(tx, formerKey(pod))
	if err != nil || text == nil {
		return was, err
	}
	if err := json.Unmarshal(text, &was); err != nil {
		return was, fmt.Errorf("decode what pod %q had: %w", pod, err)
	}
	if err := tx.Delete(formerKey(pod)); err != nil {
		return was, err
	}
	return was, tx.Delete(expiryKey(was.Freed, pod))
}

// forgetExpired forgets the pod that went first, if it went before that moment.
func forgetExpired(tx Tx, moment int64) error {
	const pod = 1 + 8 // where its name begins
	k, _, err := tx.Seek([]byte{expiryPrefix})
	if err != nil || !bytes.HasPrefix(k, []byte{expiryPrefix}) || len(k) < pod {
		return err
	}
	if int64(binary.BigEndian.Uint64(k[1:])) >= moment {
		return nil
	}
	_, err = forget(tx, string(k[pod:]))
	return err
}
