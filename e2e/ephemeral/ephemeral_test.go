package ephemeral

import "testing"

func TestPort(t *testing.T) {
	seen := map[uint16]bool{}
	for range Count {
		port := Port()
		if port < first || port > last {
			t.Fatalf("port %d is outside the range", port)
		}
		seen[port] = true
	}
	if len(seen) != Count {
		t.Errorf("%d calls gave %d ports", Count, len(seen))
	}
}
