package step_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni/step"
)

var (
	errStep = errors.New("step failed")
	errUndo = errors.New("undo failed")
)

// journal records what steps made by it do.
type journal []string

func (j *journal) step(name string, err, undoErr error) step.Func {
	return func() (step.Undo, error) {
		if err != nil {
			return nil, err
		}
		*j = append(*j, "do "+name)
		return func() error {
			*j = append(*j, "undo "+name)
			return undoErr
		}, nil
	}
}

func nothingToUndo() (step.Undo, error) { return nil, nil }

func TestRun(t *testing.T) {
	tests := map[string]struct {
		steps    func(j *journal) []step.Func
		journal  journal
		want     []error // all of them are found in the error
		wantText string
	}{
		"all succeed": {
			steps: func(j *journal) []step.Func {
				return []step.Func{j.step("a", nil, nil), nothingToUndo, j.step("b", nil, nil)}
			},
			journal: journal{"do a", "do b"},
		},
		"the steps before the failed one are undone backwards": {
			steps: func(j *journal) []step.Func {
				return []step.Func{j.step("a", nil, nil), nothingToUndo, j.step("b", nil, nil), j.step("c", errStep, nil), j.step("d", nil, nil)}
			},
			journal:  journal{"do a", "do b", "undo b", "undo a"},
			want:     []error{errStep},
			wantText: "step failed",
		},
		"an undo that fails stops no other": {
			steps: func(j *journal) []step.Func {
				return []step.Func{j.step("a", nil, nil), j.step("b", nil, errUndo), j.step("c", errStep, nil)}
			},
			journal:  journal{"do a", "do b", "undo b", "undo a"},
			want:     []error{errStep, errUndo},
			wantText: "step failed; undo: undo failed",
		},
		"a run is a step of another": {
			steps: func(j *journal) []step.Func {
				inner := func() (step.Undo, error) { return step.Run(j.step("b", nil, nil), j.step("c", nil, nil)) }
				return []step.Func{j.step("a", nil, nil), inner, j.step("d", errStep, nil)}
			},
			journal:  journal{"do a", "do b", "do c", "undo c", "undo b", "undo a"},
			want:     []error{errStep},
			wantText: "step failed",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got journal
			_, err := step.Run(tt.steps(&got)...)
			if diff := cmp.Diff(tt.journal, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			for _, want := range tt.want {
				if !errors.Is(err, want) {
					t.Errorf("error %q does not wrap %q", err, want)
				}
			}
			if err != nil && err.Error() != tt.wantText {
				t.Errorf("error %q, want %q", err, tt.wantText)
			}
		})
	}
}

func TestRunUndo(t *testing.T) {
	var got journal
	undo, err := step.Run(got.step("a", nil, errUndo), got.step("b", nil, errUndo))
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(); err == nil || err.Error() != "undo failed; undo failed" {
		t.Errorf("undo: %v, want both failures", err)
	}
	want := journal{"do a", "do b", "undo b", "undo a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}
