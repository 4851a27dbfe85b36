package vm

import "testing"

func TestNewest(t *testing.T) {
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{nil, ""},
		{[]string{"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64-dbg", "linux-image-6.1.0-51-rt-amd64"},
			"linux-image-6.1.0-50-cloud-amd64"},
		{[]string{"linux-image-6.12.111+deb12-cloud-amd64", "linux-image-6.12.9+deb12-cloud-amd64"}, "linux-image-6.12.111+deb12-cloud-amd64"},
		{[]string{"linux-image-6.1.0-50-amd64"}, ""},
	} {
		if got := newest(tt.names); got != tt.want {
			t.Errorf("newest of %v is %q, want %q", tt.names, got, tt.want)
		}
	}
}
