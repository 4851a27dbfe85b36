package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Program returns the path of a program of Kubernetes, kube-apiserver or
// kube-proxy, of the version that stands in the go.mod of the nested module
// kubernetes. It is built once per version, which takes minutes.
func Program(ctx context.Context, name string) (string, error) {
	root, err := moduleDir()
	if err != nil {
		return "", err
	}
	source := filepath.Join(root, "kubernetes")
	dir, err := cacheDir(source)
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, name)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	return program, build(ctx, source, program)
}

// build compiles a program. It appears complete or not at all, so that test
// processes may build at the same time.
func build(ctx context.Context, source, program string) error {
	unfinished, err := os.MkdirTemp(filepath.Dir(program), "unfinished-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(unfinished) }()
	name := filepath.Base(program)
	built := filepath.Join(unfinished, name)
	compile := exec.CommandContext(ctx, "nice", "go", "build", "-C", source, "-trimpath", "-ldflags=-s -w", "-o", built,
		"k8s.io/kubernetes/cmd/"+name)
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return os.Rename(built, program)
}

// moduleDir is the root of this module, in whichever of its folders a test runs.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("find the sources of package kube")
	}
	return filepath.Dir(file), nil
}

// cacheDir is where programs of the versions in source are kept.
func cacheDir(source string) (string, error) {
	hash := sha256.New()
	hash.Write([]byte(runtime.Version() + runtime.GOARCH))
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		hash.Write(text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "fairlead", "kubernetes-"+hex.EncodeToString(hash.Sum(nil)[:8]))
	return dir, os.MkdirAll(dir, 0o755)
}
