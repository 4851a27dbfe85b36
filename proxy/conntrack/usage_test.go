package conntrack

import (
	"errors"
	"io/fs"
	"testing"
)

func TestReadUsage(t *testing.T) {
	u, err := ReadUsage()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the kernel does not track here")
	}
	if err != nil || u.Limit <= 0 || u.Flows < 0 || u.Flows > u.Limit {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestDropped(t *testing.T) {
	for stat, want := range map[string]uint64{
		"entries  found drop early_drop\n00000001  00000002 000000ff 00000004\n00000001  00000002 00000001 00000004\n": 256,
		"entries  found\n00000001 00000002\n": 0,
		"":                                    0,
	} {
		if got := Dropped(stat); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
}
