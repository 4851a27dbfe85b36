// Command manifests renders the chart as the manifests that 'kubectl apply -f'
// takes, so that there is one place for what is installed.
//
//	manifests [--chart DIR] [--out DIR]       those of deploy
//	manifests [--chart DIR] --set NAME=VALUE  one with other values, on stdout
package main

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
)

// manifests are the files and the values that each is the chart with.
var manifests = map[string]map[string]any{
	"fairlead.yaml":   {},
	"proxy-only.yaml": {"node": map[string]any{"enabled": false}},
	"cni-only.yaml":   {"proxy": map[string]any{"enabled": false}},
	accounts:          {},
}

// accounts has who the programs are and what they may, for where they run without
// containers.
const accounts = "accounts.yaml"

func main() {
	from := flag.String("chart", "chart", "directory of the chart")
	to := flag.String("out", ".", "directory for the manifests")
	set := flag.String("set", "", "values, as Helm's --set has them: print the manifest that they give")
	flag.Parse()
	var err error
	if *set != "" {
		err = show(*from, *set)
	} else {
		err = run(*from, *to)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	c, err := loader.Load(from)
	if err != nil {
		return err
	}
	for name, values := range manifests {
		text, err := render(c, values)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == accounts {
			text = withoutPods(text)
		}
		if err := os.WriteFile(filepath.Join(to, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// withoutPods leaves out what makes pods.
func withoutPods(text []byte) []byte {
	const between = "\n---\n"
	documents := slices.DeleteFunc(strings.Split(string(text), between), func(d string) bool { return strings.Contains(d, "\nkind: DaemonSet\n") })
	return []byte(strings.TrimSpace(strings.Join(documents, between)) + "\n")
}

// show prints the chart with some values.
func show(from, set string) error {
	c, err := loader.Load(from)
	if err != nil {
		return err
	}
	values, err := strvals.Parse(set)
	if err != nil {
		return fmt.Errorf("--set %s: %w", set, err)
	}
	text, err := render(c, values)
	if err == nil {
		_, err = os.Stdout.Write(text)
	}
	return err
}

// render is the chart as 'helm template --namespace kube-system --include-crds'
// prints it, without what only Helm can use.
func render(c *chart.Chart, values map[string]any) ([]byte, error) {
	all, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: "fairlead", Namespace: "kube-system", Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, "# Made from deploy/chart by 'make manifests'.")
	effective, err := all.Table("Values")
	if err != nil {
		return nil, err
	}
	if node, _ := effective.PathValue("node.enabled"); node == true { // it leases blocks of pools
		for _, crd := range c.CRDObjects() {
			write(&out, string(crd.File.Data))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".yaml") {
			write(&out, files[name])
		}
	}
	return out.Bytes(), nil
}

// write adds the documents of a file that has any.
func write(out *bytes.Buffer, text string) {
	text = strings.TrimPrefix(strings.TrimSpace(text), "---\n")
	if text != "" {
		fmt.Fprintf(out, "---\n%s\n", strings.TrimSpace(text))
	}
}
