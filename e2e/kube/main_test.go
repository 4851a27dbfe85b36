package kube_test

import (
	"os"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

var programs labtest.Programs

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }
