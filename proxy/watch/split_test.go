package watch

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	type doc struct {
		Line int
		Text string
	}
	tests := []struct {
		name, file string
		want       []doc
	}{
		{"nothing", "", nil},
		{"only comments", "# a\n\n---\n# b\n", nil},
		{"one", "a: b\n", []doc{{1, "a: b\n"}}},
		{"no end of line", "a: b", []doc{{1, "a: b"}}},
		{"two", "a: b\n---\nc: d\n", []doc{{1, "a: b\n"}, {3, "c: d\n"}}},
		{"comments before", "# x\n\na: b\n# y\n--- # z\n\n # x\nc: d\n", []doc{{3, "a: b\n# y\n"}, {8, "c: d\n"}}},
		{"windows lines", "\xef\xbb\xbfa: b\r\n---\r\nc: d\r\n", []doc{{1, "a: b\r\n"}, {3, "c: d\r\n"}}},
		{"content behind the marker", "--- {a: b}\n---\t|\n x\n", []doc{{1, "--- {a: b}\n"}, {2, "---\t|\n x\n"}}},
		{"not markers", "a: |\n ---\n  ---\nb: ----\n---x: y\n", []doc{{1, "a: |\n ---\n  ---\nb: ----\n---x: y\n"}}},
		{"end markers", "a: b\n...\n# x\nc: d\n...\n---\ne: f\n", []doc{{1, "a: b\n"}, {4, "c: d\n"}, {7, "e: f\n"}}},
		{"directives", "# x\n%YAML 1.1\n# y\n---\na: b\n---\nc: d\n", []doc{{2, "%YAML 1.1\n# y\n---\na: b\n"}, {7, "c: d\n"}}},
		{"JSON stream", "{\"a\": 1}\n\n {\n\"b\": 2}{}", []doc{{1, `{"a": 1}`}, {3, "{\n\"b\": 2}"}, {4, "{}"}}},
		{"broken JSON stream", "{\"a\": 1}\n{b", []doc{{1, "{\"a\": 1}\n{b"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []doc
			for _, d := range split([]byte(tt.file)) {
				got = append(got, doc{d.line, string(d.text)})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}
