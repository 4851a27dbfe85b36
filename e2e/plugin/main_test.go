// Package plugin tests fairlead-cni where other programs are: beside the
// reference plugins that it takes the place of, before those that it is chained
// with, and below the programs that runtimes are made of.
package plugin

import (
	"os"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

var programs labtest.Programs

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }
