package refplugins_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/refplugins"
)

func TestDir(t *testing.T) {
	dir := refplugins.Dir(t)
	for _, plugin := range []string{"bridge", "host-local", "loopback", "macvlan", "portmap", "bandwidth", "tuning", "firewall", "sbr"} {
		t.Run(plugin, func(t *testing.T) {
			version := exec.CommandContext(t.Context(), filepath.Join(dir, plugin))
			version.Env = []string{"CNI_COMMAND=VERSION"}
			out, err := version.Output()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(out), `"1.1.0"`) {
				t.Errorf("%s does not speak CNI 1.1.0: %s", plugin, out)
			}
		})
	}
}
