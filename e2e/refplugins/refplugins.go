// Package refplugins builds the reference CNI plugins (bridge, host-local,
// portmap and the rest) that tests and benchmarks compare Fairlead with or chain
// it with. Their version stands in the go.mod of the nested module
// e2e/reference, so the product depends on none of them.
package refplugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
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
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var built = sync.OnceValues(func() (string, error) { return build(context.Background()) })

// build compiles the tools of the nested module into a directory whose name
// changes with what is in them. It appears complete or not at all, so that test
// processes may build at the same time.
func build(ctx context.Context) (string, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	source := filepath.Join(module, "e2e", "reference")
	key, err := key(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	complete := filepath.Join(cache, "fairlead", "reference-plugins-"+key)
	if _, err := os.Stat(complete); err == nil {
		return complete, nil
	}
	if err := os.MkdirAll(filepath.Dir(complete), 0o755); err != nil {
		return "", err
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(complete), "unfinished-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(unfinished) }()
	compile := exec.CommandContext(ctx, "go", "build", "-C", source, "-trimpath", "-ldflags=-s -w", "-o", unfinished+"/", "tool")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the reference plugins: %w: %s", err, out)
	}
	if err := os.Rename(unfinished, complete); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return complete, nil
}

// moduleDir is the root of the main module, in which tests run.
func moduleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// key names the versions of everything that goes into the plugins.
func key(source string) (string, error) {
	hash := sha256.New()
	hash.Write([]byte(runtime.Version() + runtime.GOARCH))
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		hash.Write(text)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}
