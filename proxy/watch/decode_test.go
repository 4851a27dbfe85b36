package watch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/golden"
)

// TestProblems reads the manifests of testdata/problems and compares what is
// said about them, and which objects are left, with the .golden beside each.
func TestProblems(t *testing.T) {
	paths, err := filepath.Glob("testdata/problems/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if !isManifest(filepath.Base(path)) {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			got := describe(t, path)
			golden.Compare(t, path+".golden", got)
		})
	}
}

// describe lists the problems of a file in the order of their lines, then the
// objects that are right.
func describe(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := decodeFile(filepath.Base(path), text, nil)
	s := newState()
	s.report(c.problems...)

	var b strings.Builder
	for _, p := range without(s.problems, nil) {
		if p.Note {
			b.WriteString("note: ")
		}
		b.WriteString(p.String() + "\n")
	}
	for _, o := range c.objects {
		b.WriteString("right: " + o.String() + " at " + Place{filepath.Base(path), o.line}.String() + "\n")
	}
	return b.String()
}
