package demo

import (
	"testing"

	"github.com/fairlead/fairlead/e2e/lab"
)

func TestAnswers(t *testing.T) {
	pods := []*lab.Pod{{Name: "web-1"}, {Name: "web-2"}, {Name: "web-3"}}
	for name, test := range map[string]struct {
		answers answers
		wrong   string // what even says
		order   string
	}{
		"even": {
			answers: answers{"web-2", "web-1", "web-3", "web-2", "web-1", "web-3"},
			order:   "2 1 3 2 1 3",
		},
		"one is missing": {
			answers: answers{"web-2", "web-1", "web-2", "web-1", "web-2", "web-1"},
			wrong:   "of 6 connections web-1 3, web-2 3, want 2 each",
			order:   "2 1 2 1 2 1",
		},
		"one is a stranger": {
			answers: answers{"web-2", "web-1", "client-9"},
			wrong:   "of 3 connections client-9 1, web-1 1, web-2 1, want 1 each",
			order:   "2 1 9",
		},
		"not a multiple": {
			answers: answers{"web-1", "web-2", "web-3", "web-1"},
			wrong:   "of 4 connections web-1 2, web-2 1, web-3 1, want 1 each",
			order:   "1 2 3 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := ""
			if err := test.answers.even(pods); err != nil {
				wrong = err.Error()
			}
			if wrong != test.wrong {
				t.Errorf("even says %q, want %q", wrong, test.wrong)
			}
			if order := test.answers.order(); order != test.order {
				t.Errorf("order %q, want %q", order, test.order)
			}
		})
	}
}
