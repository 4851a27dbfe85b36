// Package built compiles programs of others that tests and benchmarks run: the
// reference CNI plugins, Kubernetes. What is compiled and its versions stand in
// the go.mod of a module of its own, so the product depends on none of it. It is
// compiled once per version and kept in the user's cache.
package built

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
)

// Variable is of the environment, and names a directory in which Fairlead's own
// programs are built already. Where tests run that cannot build any it is set.
const Variable = "FAIRLEAD_PROGRAMS"

// Program returns the path of one program, whose package is in the build list of
// the module in the directory source. Name is for what the module's programs are
// kept under.
func Program(ctx context.Context, source, name, pkg string) (string, error) {
	dir, err := cacheDir(source, name)
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	return program, once(program, func(unfinished string) error { return compile(ctx, source, unfinished, pkg) })
}

// Tools returns a directory with all tools of the module in the directory source.
func Tools(ctx context.Context, source, name string) (string, error) {
	dir, err := cacheDir(source, name)
	if err != nil {
		return "", err
	}
	return dir, once(dir, func(unfinished string) error {
		if err := os.Mkdir(unfinished, 0o755); err != nil {
			return err
		}
		return compile(ctx, source, unfinished, "tool")
	})
}

// once makes what is at a path if nothing is. It appears complete or not at all,
// so that test processes may make the same at the same time.
func once(path string, makeIt func(unfinished string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), "unfinished-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	unfinished := filepath.Join(dir, filepath.Base(path))
	if err := makeIt(unfinished); err != nil {
		return err
	}
	if err := os.Rename(unfinished, path); err != nil && !errors.Is(err, fs.ErrExist) { // others were faster
		return err
	}
	return nil
}

// compile gives way to others: it may take minutes.
func compile(ctx context.Context, source, out, pkg string) error {
	command := exec.CommandContext(ctx, "nice", "go", "build", "-C", source, "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s of %s: %w: %s", pkg, source, err, text)
	}
	return nil
}

// cacheDir is named after the versions of everything that goes into the module's
// programs.
func cacheDir(source, name string) (string, error) {
	hash := sha256.New()
	hash.Write([]byte(runtime.Version() + runtime.GOARCH))
	for _, file := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, file))
		if err != nil {
			return "", err
		}
		hash.Write(text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "fairlead", name+"-"+hex.EncodeToString(hash.Sum(nil)[:8])), nil
}
