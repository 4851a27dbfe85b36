package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// What a node's programs are given to read.
func TestDocumentsOfNode(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 2, BinDir: programs.Dir(t)})
	pods := []*lab.Pod{
		labtest.AddPod(t, l, l.Nodes[0], "web-1"),
		labtest.AddPod(t, l, l.Nodes[1], "web-2"),
	}
	web := lab.NewService("web", "10.96.0.10", "fd00:10:96::10")
	idle := lab.NewService("idle", "10.96.0.20")
	gone := lab.NewService("gone", "10.96.0.30")
	for _, objects := range [][]lab.Object{{web, gone}, lab.Slices(web, pods...), {idle}, lab.Slices(idle)} {
		if err := l.Apply(objects...); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := l.Delete(gone); err != nil {
			t.Fatal(err)
		}
	}
	first, second := l.Nodes[0].Manifests(), l.Nodes[1].Manifests()
	wantGolden(t, "manifests", readAll(t, filepath.Join(first, "*")))
	if diff := cmp.Diff(readAll(t, filepath.Join(first, "*")), readAll(t, filepath.Join(second, "*"))); diff != "" {
		t.Errorf("manifests of the nodes differ:\n%s", diff)
	}
	conflist := readAll(t, filepath.Join(filepath.Dir(first), "net.d", "*"))
	wantGolden(t, "conflist", strings.ReplaceAll(conflist, l.ID, "ID"))
}

// readAll is all files of a pattern, each headed by its name.
func readAll(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("# " + filepath.Base(path) + "\n" + string(data))
	}
	return all.String()
}

func wantGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	golden.Compare(t, path, got)
}
