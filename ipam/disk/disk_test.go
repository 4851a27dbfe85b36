package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/fairlead/fairlead/ipam"
)

func newStore(t *testing.T, dataDir string) *Store {
	t.Helper()
	s, err := New(dataDir, "testnet")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustAdd(t *testing.T, s *Store, o ipam.Owner) netip.Addr {
	t.Helper()
	addr, err := add(t.Context(), s, net4, o)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// held is what a new transaction finds of an owner.
func held(t *testing.T, s *Store, o ipam.Owner) []netip.Addr {
	t.Helper()
	var lease ipam.Lease
	err := s.View(t.Context(), func(tx ipam.Tx) (err error) {
		lease, err = ipam.Held(tx, o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lease.Addrs
}

func contents(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestNewChecksTheName(t *testing.T) {
	for _, name := range []string{"", "../x", "a/b", ".hidden", "a b", "a\n"} {
		if _, err := New(t.TempDir(), name); err == nil {
			t.Errorf("network name %q was accepted", name)
		}
	}
}

func TestUpdateKeepsWhatItDid(t *testing.T) {
	s := newStore(t, t.TempDir())
	a, b := owner("a"), owner("b")
	addr := mustAdd(t, s, a)
	mustAdd(t, s, b)
	if err := del(t.Context(), s, b); err != nil {
		t.Fatal(err)
	}
	if got := held(t, s, a); len(got) != 1 || got[0] != addr {
		t.Errorf("a holds %s, want %s", got, addr)
	}
	if got := held(t, s, b); len(got) != 0 {
		t.Errorf("b holds %s after release", got)
	}
}

func TestUpdateWithAnErrorOrWithoutAChangeWritesNothing(t *testing.T) {
	s := newStore(t, t.TempDir())
	mustAdd(t, s, owner("a"))
	before := contents(t, s.path)
	refused := errors.New("changed my mind")
	err := s.Update(t.Context(), func(tx ipam.Tx) error {
		if err := ipam.Release(tx, owner("a"), fixed); err != nil {
			return err
		}
		return refused
	})
	if !errors.Is(err, refused) {
		t.Errorf("got error %v, want that of the function", err)
	}
	if err := del(t.Context(), s, owner("nobody")); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(before, contents(t, s.path)) {
		t.Error("the file changed")
	}
}

func TestFilesAreForRootOnly(t *testing.T) {
	top := t.TempDir()
	s := newStore(t, filepath.Join(top, "cni", "fairlead"))
	mustAdd(t, s, owner("a"))
	for path, want := range map[string]fs.FileMode{
		filepath.Join(top, "cni"): 0o700 | fs.ModeDir, filepath.Dir(s.path): 0o700 | fs.ModeDir, s.path: 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("mode of %s: got %s, want %s", path, info.Mode(), want)
		}
	}
}

func TestReadingMakesNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := newStore(t, dir)
	if there, err := s.Exists(); there || err != nil {
		t.Errorf("Exists before anything: %t, %v", there, err)
	}
	if err := s.View(t.Context(), func(ipam.Tx) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("View before anything: got error %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data directory was made: %v", err)
	}
	mustAdd(t, s, owner("a"))
	if there, err := s.Exists(); !there || err != nil {
		t.Errorf("Exists afterwards: %t, %v", there, err)
	}
}

func TestWaitingForTheLockEnds(t *testing.T) {
	s := newStore(t, t.TempDir())
	mustAdd(t, s, owner("a"))
	tooLate, cancel := context.WithCancel(t.Context())
	cancel()
	for name, holder := range map[string]func(context.Context, func(ipam.Tx) error) error{"writer": s.Update, "reader": s.View} {
		err := holder(t.Context(), func(ipam.Tx) error {
			_, err := add(tooLate, s, net4, owner("b"))
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "lock store "+s.path+": another process has it") {
				t.Errorf("behind a %s: got error %v", name, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Those that gave up are still in the kernel's queue: they must not keep the
	// lock when their turn comes.
	mustAdd(t, s, owner("c"))
}

func TestReadersDoNotWaitForEachOther(t *testing.T) {
	s := newStore(t, t.TempDir())
	addr := mustAdd(t, s, owner("a"))
	err := s.View(t.Context(), func(ipam.Tx) error {
		if got := held(t, s, owner("a")); len(got) != 1 || got[0] != addr {
			t.Errorf("a holds %s, want %s", got, addr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := newStore(t, filepath.Join(t.TempDir(), "made", "by", "all"))
	var all sync.WaitGroup
	var mu sync.Mutex
	owners := map[netip.Addr]ipam.Owner{} // guarded by mu
	for worker := range 16 {
		all.Go(func() {
			for i := range 8 {
				o := owner(fmt.Sprintf("w%d-%d", worker, i))
				addr, err := add(t.Context(), s, net4, o)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, twice := owners[addr]; twice {
					t.Errorf("%s was given to %s and to %s", addr, other, o)
				}
				owners[addr] = o
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(owners) != 16*8 {
		t.Errorf("%d addresses were given, want %d", len(owners), 16*8)
	}
}

func TestCreateClearsWhatAKilledProcessLeft(t *testing.T) {
	s := newStore(t, t.TempDir())
	if err := os.WriteFile(s.path+".new", []byte("half a datab"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, s, owner("a"))
	if _, err := os.Stat(s.path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the remains are still there: %v", err)
	}
}

// TestLockOfAReplacedFile is the case of a process that waited for the lock of a
// file which an operator removed meanwhile: rows written there would be lost.
func TestLockOfAReplacedFile(t *testing.T) {
	s := newStore(t, t.TempDir())
	mustAdd(t, s, owner("a"))
	opened, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if err := lockStore(t.Context(), opened, os.O_RDWR); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after removal: got error %v", err)
	}
	mustAdd(t, s, owner("a"))
	if err := lockStore(t.Context(), opened, os.O_RDWR); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after replacement: got error %v", err)
	}
}

// reopen changes a store's file as another version of this package would.
func reopen(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestUnreadableFilesAreRefused(t *testing.T) {
	const damaged = "drain the network's pods from this node"
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		want  []string
	}{
		{"empty", func(t *testing.T, path string) { truncate(t, path, 0) }, []string{"no bytes", damaged}},
		{"not a database", func(t *testing.T, path string) { overwrite(t, path, bytes.Repeat([]byte("host-local "), 9000)) }, []string{"invalid database", damaged}},
		{"a few bytes", func(t *testing.T, path string) { overwrite(t, path, []byte("10.0.0.5")) }, []string{"invalid database", damaged}},
		{"one page", func(t *testing.T, path string) { truncate(t, path, int64(os.Getpagesize())) }, []string{damaged}},
		{"first four pages", func(t *testing.T, path string) { truncate(t, path, 4*int64(os.Getpagesize())) }, []string{damaged}},
		{"both meta pages gone", func(t *testing.T, path string) { zero(t, path, 0, 2*os.Getpagesize()) }, []string{"invalid database", damaged}},
		{"all but the meta pages gone", func(t *testing.T, path string) { zero(t, path, 2*os.Getpagesize(), 1<<30) }, []string{damaged}},
		{"a branch in a circle", rewrite(func(p *pages, data []byte) {
			order.PutUint64(data[p.rows*uint64(p.PageSize)+headerSize+8:], p.rows)
		}), []string{"leads to itself", damaged}},
		{"a leaf that ends early", rewrite(func(p *pages, data []byte) {
			order.PutUint32(data[p.known[p.rows][0].page*uint64(p.PageSize)+headerSize+4:], 5000)
		}), []string{"element 0 of page ", "5000 bytes behind it", damaged}},
		{"a page without end", rewrite(func(p *pages, data []byte) {
			order.PutUint32(data[p.FreeList*uint64(p.PageSize)+12:], 1<<31)
		}), []string{"it goes on for 2147483648 pages", damaged}},
		{"free pages without number", rewrite(func(p *pages, data []byte) {
			list := data[p.FreeList*uint64(p.PageSize):]
			order.PutUint16(list[10:], countBehind)
			order.PutUint64(list[headerSize:], 1<<40)
		}), []string{"lists 1099511627776 free pages", damaged}},
		{"a bucket that leads to itself", rewrite(func(p *pages, data []byte) {
			_, elements, _ := p.elements(p.Root)
			root := data[p.Root*uint64(p.PageSize):]
			order.PutUint16(root[bytes.Index(root, elements[0].value)+bucketSize+8:], isBranch)
		}), []string{"the page of bucket about has flags 0x1", damaged}},
		{"another program's", func(t *testing.T, path string) {
			reopen(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(about) })
		}, []string{"another program's", damaged}},
		{"of a newer release", func(t *testing.T, path string) {
			reopen(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(about).Put(schema, []byte("2")) })
		}, []string{`it has schema "2"`, "knows schema 1 only", "use the release of Fairlead that wrote it, or a later one"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			for i := range 100 {
				mustAdd(t, s, owner(fmt.Sprintf("pod%d", i)))
			}
			tt.spoil(t, s.path)
			spoilt := contents(t, s.path)
			_, err := add(t.Context(), s, net4, owner("x"))
			for _, want := range append(tt.want, s.path) {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got error %v, want it to say %q", err, want)
				}
			}
			if err := s.View(t.Context(), func(tx ipam.Tx) error { _, err := ipam.Held(tx, owner("pod1")); return err }); err == nil {
				t.Error("View took the file")
			}
			if !bytes.Equal(spoilt, contents(t, s.path)) {
				t.Error("the file changed")
			}
		})
	}
}

// rewrite has the pages of a file say something else.
func rewrite(change func(p *pages, data []byte)) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		t.Helper()
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		p, err := openPages(file)
		if err != nil {
			t.Fatal(err)
		}
		data := contents(t, path)
		change(p, data)
		overwrite(t, path, data)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func zero(t *testing.T, path string, from, to int) {
	t.Helper()
	data := contents(t, path)
	clear(data[from:min(to, len(data))])
	overwrite(t, path, data)
}

// TestRandomDamage expects of a file with a spoilt stretch that whoever opens it
// gets an error or an answer, and lives.
func TestRandomDamage(t *testing.T) {
	s := newStore(t, t.TempDir())
	for i := range 100 {
		mustAdd(t, s, owner(fmt.Sprintf("pod%d", i)))
	}
	good := contents(t, s.path)
	random := rand.New(rand.NewPCG(1, 2))
	refused, noticed := 0, 0
	for range 200 {
		bad := bytes.Clone(good)
		at := random.IntN(len(bad) - 64)
		for i := range bad[at : at+1+random.IntN(63)] {
			bad[at+i] = byte(random.Uint32())
		}
		overwrite(t, s.path, bad)
		if found, err := s.Check(t.Context()); err != nil || len(found) > 0 {
			noticed++
		}
		if _, err := add(t.Context(), s, net4, owner("x")); err != nil {
			refused++
			continue
		}
		_ = del(t.Context(), s, owner("pod50"))
	}
	if refused == 0 || noticed < refused {
		t.Errorf("of 200 damaged files %d were refused and %d noticed by Check", refused, noticed)
	}
}

func TestCheckOfASoundFile(t *testing.T) {
	s := fill(t, net4, 2000)
	for i := range 500 {
		if err := s.Update(t.Context(), func(tx ipam.Tx) error {
			return ipam.Release(tx, owner(fmt.Sprintf("%064x", 3*i)), fixed)
		}); err != nil {
			t.Fatal(err)
		}
	}
	before := contents(t, s.path)
	found, err := s.Check(t.Context())
	if err != nil || len(found) > 0 {
		t.Errorf("found %q and error %v", found, err)
	}
	if !bytes.Equal(before, contents(t, s.path)) {
		t.Error("the file changed")
	}
}

func TestNetworks(t *testing.T) {
	dir := t.TempDir()
	if got, err := Networks(filepath.Join(dir, "nowhere")); len(got) > 0 || err != nil {
		t.Errorf("of no directory: got %q and error %v", got, err)
	}
	for _, name := range []string{"pods.db", "macvlan.2.db", "new.db.new", "notes", ".db", "a b.db"} {
		overwrite(t, filepath.Join(dir, name), nil)
	}
	got, err := Networks(dir)
	if want := []string{"macvlan.2", "pods"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q and error %v, want %q", got, err, want)
	}
	if _, err := Networks(filepath.Join(dir, "notes")); err == nil {
		t.Error("a file was taken for a directory")
	}
}
