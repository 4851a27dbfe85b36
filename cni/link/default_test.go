package link_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/cni/link"
)

func TestDefaultDevice(t *testing.T) {
	tests := map[string]struct {
		routes []string
		want   string // "": none
	}{
		"none":                  {nil, ""},
		"not to everywhere":     {[]string{"10.8.0.0/16 dev out0"}, ""},
		"IPv4":                  {[]string{"default dev out0"}, "out0"},
		"IPv6":                  {[]string{"-6 default dev out1"}, "out1"},
		"both":                  {[]string{"-6 default dev out0", "default dev out1"}, "out1"},
		"the lower metric":      {[]string{"default dev out0 metric 200", "default dev out1 metric 100"}, "out1"},
		"shared":                {[]string{"default nexthop dev out1 nexthop dev out0"}, "out1"},
		"a dead end":            {[]string{"unreachable default metric 1", "default dev out0 metric 2"}, "out0"},
		"a dead end of IPv6":    {[]string{"-6 unreachable default metric 1", "-6 default dev out0 metric 2"}, "out0"},
		"of another table only": {[]string{"default dev out0 table 100"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ns, made := open(t)
			for _, device := range []string{"out0", "out1"} {
				made.RunT(t, "ip", "link", "add", device, "up", "type", "bridge")
			}
			for _, route := range tt.routes {
				if words, is6 := strings.CutPrefix(route, "-6 "); is6 {
					made.RunT(t, "ip", append([]string{"-6", "route", "add"}, strings.Fields(words)...)...)
					continue
				}
				made.RunT(t, "ip", append([]string{"route", "add"}, strings.Fields(route)...)...)
			}
			got, err := ns.DefaultDevice()
			if got.Name != tt.want || (tt.want == "") != errors.Is(err, link.ErrNoDevice) {
				t.Errorf("got %q, error %v; want %q", got.Name, err, tt.want)
			}
		})
	}
}
