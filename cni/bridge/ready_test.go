package bridge

import (
	"errors"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/e2e/netns"
)

// TestLockOfOthers has another ADD hold the lock for longer than this one waits.
func TestLockOfOthers(t *testing.T) {
	made := netns.NewT(t)
	open := func() *link.NS {
		ns, err := link.Open(made.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ns.Close)
		return ns
	}
	host, other := open(), open()
	if err := lock(other, link.Exclusive, time.Minute); err != nil {
		t.Fatal(err)
	}
	var coded *types.Error
	if err := lock(host, link.Shared, time.Millisecond); !errors.As(err, &coded) || coded.Code != types.ErrTryAgainLater {
		t.Errorf("error %v, want one with code %d", err, types.ErrTryAgainLater)
	}
}
