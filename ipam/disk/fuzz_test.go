package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

// FuzzFile has bytes of a store's file be others, and the file be cut. Whoever opens it
// gets an answer or an error, and lives.
func FuzzFile(f *testing.F) {
	good := contents(f, fill(f, net4, 100).path)
	f.Add(uint32(0), []byte{}, uint32(len(good)))
	f.Add(uint32(0), []byte("no database"), uint32(len(good)))
	f.Add(uint32(3*4096), []byte{3, 0, 0, 0, 0, 0, 0, 0, 1}, uint32(len(good)))
	f.Add(uint32(4*4096+16), []byte{255, 255, 255, 255}, uint32(5*4096))
	f.Fuzz(func(t *testing.T, at uint32, other []byte, length uint32) {
		bad := bytes.Clone(good[:min(int(length), len(good))])
		if int(at) < len(bad) {
			copy(bad[at:], other)
		}
		s := newStore(t, t.TempDir())
		overwrite(t, s.path, bad)
		ask := func(tx ipam.Tx) error {
			_, err := ipam.Leases(tx, "boot")
			return err
		}
		asked := s.View(t.Context(), ask)
		if errors.Is(asked, fs.ErrNotExist) {
			t.Fatal(asked)
		}
		_, _ = s.Check(t.Context())
		if _, err := add(t.Context(), s, net4, owner("x")); err == nil {
			_ = s.Update(t.Context(), func(tx ipam.Tx) error { return ipam.Release(tx, owner("x"), time.Unix(1, 0)) })
		}
	})
}
