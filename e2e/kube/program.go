package kube

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/fairlead/fairlead/e2e/built"
)

// Program returns the path of a program of Kubernetes, kube-apiserver or
// kube-proxy, of the version that stands in the go.mod of the nested module
// kubernetes. It is built once per version, which takes minutes.
func Program(ctx context.Context, name string) (string, error) {
	root, err := moduleDir()
	if err != nil {
		return "", err
	}
	return built.Program(ctx, filepath.Join(root, "kubernetes"), "kubernetes", "k8s.io/kubernetes/cmd/"+name)
}

// moduleDir is the root of this module, in whichever of its folders a test runs.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("find the sources of package kube")
	}
	return filepath.Dir(file), nil
}
