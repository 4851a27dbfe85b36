package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/e2e/golden"
)

// docs/configuration.md has every flag of every command, as the commands have them.
func TestConfigurationDoc(t *testing.T) {
	var page strings.Builder
	page.WriteString(`# Configuration

Fairlead is configured by flags; 'fairlead proxy' also by kube-proxy's configuration file (` + "`--config`" + `), whose fields mean
what they mean to kube-proxy: of those that mean nothing here the log says so. The keys of the CNI plugin are those of the
reference plugins, those of its IPAM are [here](../cni/hostlocal/README.md); [pools](pools.md) are objects of the API.
The values of the chart stand in [values.yaml](../deploy/chart/values.yaml).

This page is made from the commands: ` + "`go test ./cmd/fairlead -run TestConfigurationDoc -update`" + `.
`)
	describe(&page, rootCommand(env{}))
	golden.Compare(t, "../../docs/configuration.md", page.String())
}

func describe(page *strings.Builder, cmd *cobra.Command) {
	if cmd.Hidden {
		return
	}
	var rows []string
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + strings.ToUpper(kind)
		}
		value := f.DefValue
		if value != "" {
			value = "`" + value + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", name, value, strings.ReplaceAll(usage, "|", "\\|")))
	})
	if len(rows) > 0 {
		fmt.Fprintf(page, "\n## %s\n\n%s.\n\n| flag | default | |\n|---|---|---|\n%s", cmd.CommandPath(), cmd.Short, strings.Join(rows, ""))
	}
	for _, sub := range cmd.Commands() {
		describe(page, sub)
	}
}

// Every command of Fairlead's in the docs is one that it takes, with flags that it
// has, and what make is asked for is there.
func TestDocCommands(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range docPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "    ") { // no block of commands
				continue
			}
			line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " > ")
			if words, ok := commandOf(line); ok {
				checkCommand(t, page, words)
			}
			if target, ok := strings.CutPrefix(line, "make "); ok && !regexp.MustCompile(`(?m)^`+strings.Fields(target)[0]+`:`).Match(makefile) {
				t.Errorf("%s: %s: there is no such target", page, line)
			}
		}
	}
}

func docPages(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("find the docs: %v, %v", pages, err)
	}
	return append(pages, "../../README.md")
}

// commandOf are the words after "fairlead" of a command line, also of one that runs
// it elsewhere.
func commandOf(line string) ([]string, bool) {
	if _, inside, ok := strings.Cut(line, " -- "); ok && strings.HasPrefix(line, "kubectl ") {
		line = inside
	}
	line = strings.TrimPrefix(line, "bin/")
	rest, ok := strings.CutPrefix(line, "fairlead ")
	return strings.Fields(rest), ok
}

func checkCommand(t *testing.T, page string, words []string) {
	t.Helper()
	cmd, args, err := rootCommand(env{}).Find(words)
	if err == nil && !cmd.HasParent() && words[0] != "completion" { // cobra adds that one later
		err = fmt.Errorf("there is no such command")
	}
	if err == nil && cmd.HasParent() {
		err = cmd.ParseFlags(args)
	}
	if err == nil && cmd.HasParent() {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil {
		t.Errorf("%s: fairlead %s: %v", page, strings.Join(words, " "), err)
	}
}

// Every log line that docs/operations.md explains is one that the sources have.
func TestDocLogLines(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Log lines")
	section, _, _ = strings.Cut(section, "\n## ")
	var sources strings.Builder
	for _, dir := range []string{"../../proxy", "../../cni", "."} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			sources.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for row := range strings.Lines(section) {
		cells := strings.Split(row, "|")
		if len(cells) < 3 {
			continue
		}
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			lines = append(lines, quoted[1])
		}
	}
	if len(lines) < 10 {
		t.Fatalf("the page has these only: %q", lines)
	}
	slices.Sort(lines)
	for _, line := range lines {
		if !strings.Contains(sources.String(), fmt.Sprintf("%q", line)) {
			t.Errorf("nothing logs %q", line)
		}
	}
}
