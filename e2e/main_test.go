// Package e2e tests the programs as a user runs them: black boxes, in clusters
// of network namespaces, judged by what their packets do.
package e2e

import (
	"os"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

var programs labtest.Programs

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }
