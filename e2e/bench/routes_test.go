package bench

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestRoutes measures as little as can be, and looks whether every stream is there and
// has a figure.
func TestRoutes(t *testing.T) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs.Dir(t), "fairlead-lab"), "bench", "routes",
		"--blocks", "2", "--slice", "200ms", "--max-steal", "100", "--seed", "5", "-o", "json")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &errs)
	}
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	var r RoutesReport
	if err := decoder.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Seed != 5 || r.Blocks != 2 || len(r.Rates) != 8 || len(r.Figures) != 6 {
		t.Errorf("%+v", r)
	}
	for name, rate := range r.Rates {
		if rate <= 0 {
			t.Errorf("%s: %g Gbit/s", name, rate)
		}
	}
}
