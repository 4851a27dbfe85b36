package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRanges(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/29")}, Set{hosts("fd00::/64")})
	d.cooldown = 30 * time.Second
	d.mustAllocate("a")
	oldest := d.now.Add(time.Second)
	d.mustAllocate("b")
	d.mustAllocate("c")
	d.release("a")
	d.now = d.now.Add(time.Minute)
	d.release("c")
	got, err := Ranges(d.tx, "", d.now)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	since, _ := oldest.MarshalText()
	want := `[{"First":"10.0.0.1","Last":"10.0.0.6","Size":5,"Used":1,"Cooling":1,"Free":3,"Cooldown":30000000000,"Oldest":"` + string(since) + `"},` +
		`{"First":"fd00::1","Last":"fd00::ffff:ffff:ffff:ffff","Size":18446744073709551614,"Used":1,"Cooling":1,"Free":18446744073709551612,"Cooldown":30000000000,"Oldest":"` + string(since) + `"}]`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("ranges: -want +got\n%s", diff)
	}
	if got, err := Ranges(d.tx, "another boot", d.now); len(got) > 0 || err != nil {
		t.Errorf("in another boot: got %v and error %v", got, err)
	}
}

func TestLeasesThatCannotBeRead(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	for _, id := range []string{"a", "b", "c"} {
		d.mustAllocate(id)
	}
	d.tx[string(leaseKey(Owner{"b", "eth0"}))] = "{"
	leases, err := Leases(d.tx, "")
	if len(leases) != 2 || leases[0].ContainerID != "a" || leases[1].ContainerID != "c" {
		t.Errorf("got leases %v", leases)
	}
	if want := "decode lease of container b interface eth0: unexpected end of JSON input"; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if leases, err := Leases(d.tx, "another boot"); len(leases) > 0 || err != nil {
		t.Errorf("in another boot: got %v and error %v", leases, err)
	}
}

func TestReady(t *testing.T) {
	sets := []Set{{hosts("10.0.0.0/30")}, {hosts("fd00::/64")}}
	two := addrs("10.0.0.2")[0]
	fullAndMoved := []Set{{hosts("10.0.0.0/30")}}
	fullAndMoved[0][0].First, fullAndMoved[0][0].Gateway = two, two
	wider := []Set{{hosts("10.0.0.0/29")}}
	wider[0][0].Gateway = two
	taken := &ReservedError{two, "the gateway of 10.0.0.0/30", Owner{"a", "eth0"}}
	for _, tt := range []struct {
		name  string
		holds bool // one pod, which is all that there is room for
		boot  string
		sets  []Set
		want  error
	}{
		{"nothing is held", false, "", sets, nil},
		{"all is held", true, "", sets, &ExhaustedError{Set: sets[0]}},
		{"all was held in an earlier boot", true, "another", sets, nil},
		{"of other ranges", true, "", []Set{{hosts("10.0.1.0/30")}}, nil},
		{"all is held, and a pod has the gateway", true, "", fullAndMoved, fmt.Errorf("%w; %w", &ExhaustedError{Set: fullAndMoved[0]}, taken)},
		{"a pod has the gateway, and there are others", true, "", wider, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, sets...)
			if tt.holds {
				d.mustAllocate("a")
			}
			before := len(d.tx)
			err := Ready(readOnly{d.tx}, tt.boot, tt.sets, d.now)
			if diff := cmp.Diff(text(tt.want), text(err)); diff != "" || len(d.tx) != before {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// readOnly is a Tx that refuses to write.
type readOnly struct{ Tx }

var errReadOnly = errors.New("it is only to be read")

func (readOnly) Put([]byte, []byte) error { return errReadOnly }
func (readOnly) Delete([]byte) error      { return errReadOnly }

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestVerify spoils a store in every way that Verify knows.
func TestVerify(t *testing.T) {
	a, addr := Owner{"a", "eth0"}, addrs("10.0.0.2")[0]
	queueKey := func(m memory, id uint32) string {
		k, _, _ := m.Seek(idKey(queuePrefix, id))
		return string(k)
	}
	for _, tt := range []struct {
		name  string
		spoil func(m memory)
		want  string // the first that is found
	}{
		{"lease unreadable", func(m memory) { m[string(leaseKey(a))] = "x" }, "decode lease of container a interface eth0: invalid character 'x' looking for beginning of value"},
		{"lease gone", func(m memory) { delete(m, string(leaseKey(a))) }, "address 10.0.0.2 is held by container a interface eth0, which has no lease of it"},
		{"address gone", func(m memory) { delete(m, string(addrKey(addr))) }, "address 10.0.0.2 is in the lease of container a interface eth0 and is not held"},
		{"address of another", func(m memory) { m[string(addrKey(addr))] = "z\x00eth0" }, "address 10.0.0.2 is held by container z interface eth0, which has no lease of it"},
		{"two leases", func(m memory) { m[string(leaseKey(Owner{"b", "eth0"}))] = m[string(leaseKey(a))] }, "address 10.0.0.2 is in the leases of container a interface eth0 and container b interface eth0"},
		{"address unreadable", func(m memory) { m["axyz"] = "z\x00eth0" }, "decode address 78 79 7a: not one byte of family and an address"},
		{"range unreadable", func(m memory) { m[string(idKey(stockPrefix, 9))] = "[]" }, "decode range 9: json: cannot unmarshal array into Go value of type ipam.stock"},
		{"held and freed", func(m memory) { m[queueKey(m, 1)] = string(appendAddr(nil, addr)) }, "address 10.0.0.2 is held by container a interface eth0 and is in the queue of range 10.0.0.1-10.0.0.6"},
		{"the gateway freed", func(m memory) { m[queueKey(m, 1)] = string(appendAddr(nil, addrs("10.0.0.1")[0])) }, "address 10.0.0.1 is in the queue of range 10.0.0.1-10.0.0.6, which cannot give it"},
		{"queue unreadable", func(m memory) { m[queueKey(m, 1)] = "" }, "decode address : not one byte of family and an address"},
		{"no position", func(m memory) {
			delete(m, string((&stock{id: 1}).positionKey(addrs("10.0.0.3")[0])))
		}, "range 10.0.0.1-10.0.0.6 has 1 addresses in its queue and 0 positions"},
		{"wrong position", func(m memory) {
			m[string((&stock{id: 1}).positionKey(addrs("10.0.0.3")[0]))] = "12345678"
		}, "address 10.0.0.3 is not at its position in the queue of range 10.0.0.1-10.0.0.6"},
		{"lost", func(m memory) {
			delete(m, queueKey(m, 1))
			delete(m, string((&stock{id: 1}).positionKey(addrs("10.0.0.3")[0])))
		}, "address 10.0.0.3 is lost: it is neither held nor in the queue of range 10.0.0.1-10.0.0.6, and was passed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, Set{hosts("10.0.0.0/29")})
			d.mustAllocate("a")
			d.mustAllocate("b")
			d.release("b")
			d.mustAllocate("c") // the frontier has passed .3
			tt.spoil(d.tx)
			found, err := Verify(d.tx, "")
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 || found[0] != tt.want {
				t.Errorf("found %q\nwant  %q", found, tt.want)
			}
		})
	}
}
