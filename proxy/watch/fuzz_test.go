package watch

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzDecodeFile feeds any text. Whatever it is, it is decoded without panic,
// each problem has a line that the file has, each object has a name, and the
// documents that are known give the same again.
func FuzzDecodeFile(f *testing.F) {
	paths, err := filepath.Glob("testdata/problems/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, known := decodeFile("f", text, nil)
		lines := bytes.Count(text, []byte("\n")) + 1
		for _, p := range c.problems {
			if p.Place.Line < 1 || p.Place.Line > lines || p.Message == "" {
				t.Errorf("problem %q is in none of %d lines or says nothing", p, lines)
			}
		}
		for _, o := range c.objects {
			if o.Name.Name == "" || o.line < 1 || o.line > lines || o.value == nil {
				t.Errorf("object %s in line %d of %d is incomplete", o, o.line, lines)
			}
		}
		again, _ := decodeFile("f", text, known)
		if diff := cmp.Diff(c.problems, again.problems); diff != "" {
			t.Errorf("problems of known documents differ:\n%s", diff)
		}
		if len(again.objects) != len(c.objects) {
			t.Errorf("known documents give %d objects instead of %d", len(again.objects), len(c.objects))
		}
	})
}
