// Command programs builds the programs of Kubernetes that the tests of package kube
// run, unless they are there.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/fairlead/fairlead/e2e/kube"
)

func main() {
	for _, name := range []string{"kube-apiserver", "kube-proxy"} {
		path, err := kube.Program(context.Background(), name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(path)
	}
}
