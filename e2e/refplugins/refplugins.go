// Package refplugins builds the reference CNI plugins (bridge, host-local,
// portmap and the rest) that tests and benchmarks compare Fairlead with or chain
// it with. Their version stands in the go.mod of the nested module
// e2e/reference, so the product depends on none of them.
package refplugins

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fairlead/fairlead/e2e/built"
)

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Fatal(args ...any)
}

// Dir returns the directory of the plugins, ready to be a CNI_PATH. They are
// built once per version, the first time on a machine in some seconds.
func Dir(t TB) string {
	t.Helper()
	dir, err := plugins()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var plugins = sync.OnceValues(func() (string, error) {
	if programs := os.Getenv(built.Variable); programs != "" {
		return filepath.Join(programs, "reference"), nil // where nothing is built there may be none
	}
	module, err := moduleDir(context.Background())
	if err != nil {
		return "", err
	}
	return built.Tools(context.Background(), filepath.Join(module, "e2e", "reference"), "reference-plugins")
})

// moduleDir is the root of the main module, in which tests run.
func moduleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}
