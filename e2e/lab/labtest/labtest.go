// Package labtest gives a lab to a test: the programs, built from this source
// tree, and a cluster that goes with the test.
package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead/fairlead/e2e/built"
	"github.com/fairlead/fairlead/e2e/lab"
)

// Programs are fairlead, fairlead-cni and fairlead-lab, built when a test first
// wants them. A test package has one, and lets it run the tests:
//
//	var programs labtest.Programs
//
//	func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }
type Programs struct {
	once sync.Once
	dir  string
	err  error // of building
}

// Run removes the labs that killed test runs have left, runs the tests, and
// removes the programs.
func (p *Programs) Run(m *testing.M) (code int) {
	if err := lab.Sweep(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	defer func() { _ = os.RemoveAll(p.dir) }() // "" is nothing to remove
	return m.Run()
}

// Dir is the directory in which the programs are.
func (p *Programs) Dir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(built.Variable); dir != "" {
		return dir
	}
	p.once.Do(func() { p.dir, p.err = build() })
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.dir
}

const commands = "github.com/fairlead/fairlead/cmd/..."

func build() (string, error) {
	dir, err := os.MkdirTemp("", "fairlead-lab-")
	if err != nil {
		return "", err
	}
	// MkdirTemp lets nobody else in, and some tests run a program as nobody.
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	if _, err := goTool("build", "-o", dir, commands); err != nil {
		return dir, err
	}
	return dir, lookAtSources()
}

// lookAtSources looks at each file that the programs are built from. The go
// command notes what files of the module a test looks at while it runs, and
// shows a cached result only if those are unchanged. What a test builds it
// cannot know.
func lookAtSources() error {
	const files = `{{with .Module}}{{if .Main}}{{.GoMod}}
{{range $.GoFiles}}{{$.Dir}}/{{.}}
{{end}}{{range $.EmbedFiles}}{{$.Dir}}/{{.}}
{{end}}{{end}}{{end}}`
	out, err := goTool("list", "-deps", "-f", files, commands)
	if err != nil {
		return err
	}
	for _, file := range strings.Fields(out) {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	return nil
}

func goTool(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, &stderr)
	}
	return string(out), nil
}

// New builds a lab that is closed when the test ends.
func New(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// AddPod adds a pod to a lab.
func AddPod(t *testing.T, l *lab.Lab, node *lab.Node, name string) *lab.Pod {
	t.Helper()
	p, err := l.AddPod(t.Context(), node, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
