package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/proxy/service"
)

// cluster follows a Dir and is what a loop would know of it.
type cluster struct {
	t        *testing.T
	dir      *Dir
	services map[string]*service.Service // by name; all are in one namespace
	problems map[Problem]int             // without lines → how many
	// vanished counts how often each Service went away.
	vanished map[string]int
	updates  int
}

func follow(t *testing.T, path string) *cluster {
	t.Helper()
	dir, err := NewDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return &cluster{
		t: t, dir: dir,
		services: map[string]*service.Service{},
		problems: map[Problem]int{},
		vanished: map[string]int{},
	}
}

// next takes one News in, and fails if it contradicts what was told before.
func (c *cluster) next() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	news, err := c.dir.Next(ctx)
	if err != nil {
		c.t.Fatalf("wait for news: %v; there are the Services %v and the problems %v",
			err, c.names(), slices.Collect(maps.Keys(c.problems)))
	}
	c.updates++
	for name, s := range news.Update.Services {
		if s != nil {
			c.services[name.Name] = s
			continue
		}
		if c.services[name.Name] == nil {
			c.t.Errorf("Service %s is gone but never was there", name)
		}
		delete(c.services, name.Name)
		c.vanished[name.Name]++
	}
	for _, p := range news.Problems {
		c.problems[p.withoutLines()]++
	}
	for _, p := range news.Mended {
		p = p.withoutLines()
		if c.problems[p] == 0 {
			c.t.Errorf("mended but never told: %s", p)
		}
		if c.problems[p]--; c.problems[p] == 0 {
			delete(c.problems, p)
		}
	}
}

func (c *cluster) names() []string { return slices.Sorted(maps.Keys(c.services)) }

// until takes News in until these are the Services, and nothing is wrong.
func (c *cluster) until(names ...string) {
	c.t.Helper()
	slices.Sort(names)
	for !slices.Equal(c.names(), names) || len(c.problems) > 0 {
		c.next()
	}
}

// untilPort takes News in until a Service has that port.
func (c *cluster) untilPort(name string, port uint16) {
	c.t.Helper()
	for c.services[name] == nil || c.services[name].Ports[0].Number != port {
		c.next()
	}
}

// quiet fails if there is any more News.
func (c *cluster) quiet() {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	cancel()
	if err := c.dir.look(time.Now()); err != nil {
		c.t.Fatal(err)
	}
	if news, ok := c.dir.news(); ok {
		c.t.Errorf("there is more news: %+v", news)
	}
	if _, err := c.dir.Next(ctx); !errors.Is(err, context.Canceled) {
		c.t.Errorf("Next with a cancelled context: got %v", err)
	}
}

// patient makes the Dir wait for half-written files for ever: what it then takes
// it has not taken for lack of time.
func (c *cluster) patient() { c.dir.settle, c.dir.patience = time.Hour, time.Hour }

func manifest(name string, port int) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
spec:
  clusterIP: 10.0.0.1
  ports:
  - port: %d
`, name, port)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file as careful editors do: beside it, then a rename.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+"~", text)
	must(t, os.Rename(path+"~", path))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// age makes a file look as if it had been left alone for long.
func age(t *testing.T, path string) {
	t.Helper()
	then := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(path, then, then))
}

func TestNewDirUnreadable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for _, path := range []string{file, file + "/none", file + "none"} {
		dir, err := NewDir(path)
		if err == nil {
			_ = dir.Close()
		}
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("NewDir(%s): got error %v, want one that names the directory", path, err)
		}
	}
}

func TestFirstNews(t *testing.T) {
	t.Run("empty directory", func(t *testing.T) {
		c := follow(t, t.TempDir())
		c.next()
		c.until()
	})
	t.Run("which files count", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"a.yaml", "b.yml", "c.json", ".d.yaml", "e.txt", "f.yaml~", "yaml"} {
			write(t, filepath.Join(dir, name), manifest("s-"+name[:1], 80))
		}
		must(t, os.Mkdir(filepath.Join(dir, "below"), 0o755))
		write(t, filepath.Join(dir, "below", "g.yaml"), manifest("s-g", 80))
		c := follow(t, dir)
		c.next()
		c.until("s-a", "s-b", "s-c")
		c.quiet()
	})
	t.Run("waits for a file that is being written", func(t *testing.T) {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "a.yaml"))
		must(t, err)
		c := follow(t, dir)
		c.patient()
		text := manifest("a", 80) + "---\n" + manifest("b", 80)
		_, err = f.WriteString(text[:150])
		must(t, err)
		must(t, c.dir.look(time.Now()))
		if news, ok := c.dir.news(); ok {
			t.Errorf("got news of a file that is half written: %+v", news)
		}
		_, err = f.WriteString(text[150:])
		must(t, err)
		must(t, f.Close())
		c.next()
		c.until("a", "b")
		if c.updates != 1 {
			t.Errorf("got %d updates, want all in the first", c.updates)
		}
	})
}

// TestChanges changes a.yaml in all the ways in which files are changed.
func TestChanges(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, path string)
	}{
		{"written over", func(t *testing.T, path string) { write(t, path, manifest("web", 81)) }},
		{"renamed over", func(t *testing.T, path string) { replace(t, path, manifest("web", 81)) }},
		{"renamed over, with an old time and the same size", func(t *testing.T, path string) {
			write(t, path+"~", manifest("web", 81))
			age(t, path+"~")
			must(t, os.Rename(path+"~", path))
		}},
		{"moved away and written anew", func(t *testing.T, path string) {
			must(t, os.Rename(path, path+"~"))
			write(t, path, manifest("web", 81))
		}},
		{"removed and linked anew", func(t *testing.T, path string) {
			write(t, path+"~", manifest("web", 81))
			must(t, os.Remove(path))
			must(t, os.Symlink(path+"~", path))
		}},
		{"truncated and closed, then written", func(t *testing.T, path string) {
			write(t, path, "")
			write(t, path, manifest("web", 81))
		}},
		{"written in pieces", func(t *testing.T, path string) {
			f, err := os.Create(path)
			must(t, err)
			for _, piece := range strings.SplitAfter(manifest("web", 81), "\n") {
				_, err := f.WriteString(piece)
				must(t, err)
			}
			must(t, f.Close())
		}},
		{"written and not closed", func(t *testing.T, path string) {
			f, err := os.Create(path)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			_, err = f.WriteString(manifest("web", 81))
			must(t, err)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.yaml")
			write(t, path, manifest("web", 80))
			c := follow(t, filepath.Dir(path))
			c.until("web")
			tt.change(t, path)
			c.untilPort("web", 81)
			if len(c.problems) > 0 {
				t.Errorf("got the problems %v", c.problems)
			}
		})
	}
}

// TestHalfWritten stops in the middle of a change and looks: what was there
// before must still count. Then it goes on to the end, which must count.
func TestHalfWritten(t *testing.T) {
	both := manifest("a", 80) + "---\n" + manifest("b", 80)
	changed := manifest("a", 81) + "---\n" + manifest("b", 81)
	type step func(t *testing.T, path string) (next func())
	writing := func(upTo int) step {
		return func(t *testing.T, path string) func() {
			f, err := os.Create(path)
			must(t, err)
			_, err = f.WriteString(changed[:upTo])
			must(t, err)
			return func() {
				_, err := f.WriteString(changed[upTo:])
				must(t, err)
				must(t, f.Close())
			}
		}
	}
	tests := []struct {
		name string
		half step
	}{
		{"truncated", writing(0)},
		{"in the first object", writing(60)},
		{"after the first object", writing(len(manifest("a", 81)))},
		{"in the port of the second", writing(len(changed) - 2)},
		{"truncated and closed", func(t *testing.T, path string) func() {
			write(t, path, "")
			return func() { write(t, path, changed) }
		}},
		{"one of two objects and closed", func(t *testing.T, path string) func() {
			write(t, path, manifest("a", 81))
			return func() { write(t, path, changed) }
		}},
		{"broken and closed", func(t *testing.T, path string) func() {
			write(t, path, changed[:len(changed)-4])
			return func() { write(t, path, changed) }
		}},
		{"moved away", func(t *testing.T, path string) func() {
			must(t, os.Rename(path, path+"~"))
			return func() { write(t, path, changed) }
		}},
		{"link to nowhere", func(t *testing.T, path string) func() {
			must(t, os.Remove(path))
			must(t, os.Symlink("nowhere", path))
			return func() { replace(t, path, changed) }
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.yaml")
			write(t, path, both)
			c := follow(t, filepath.Dir(path))
			c.until("a", "b")
			c.patient()

			rest := tt.half(t, path)
			c.quiet()
			c.dir.drain(t)
			c.quiet()

			rest()
			c.untilPort("a", 81)
			c.untilPort("b", 81)
			if len(c.vanished) > 0 || len(c.problems) > 0 {
				t.Errorf("meanwhile these vanished: %v, and there were the problems %v", c.vanished, c.problems)
			}
		})
	}
}

// drain takes in the events that there are.
func (d *Dir) drain(t *testing.T) {
	t.Helper()
	events, err := d.notify.wait(t.Context(), time.Now().Add(time.Second))
	must(t, err)
	if len(events) == 0 {
		t.Error("there were no events")
	}
	d.note(events)
}

// TestRemoved removes things for good.
func TestRemoved(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("a.yaml"), manifest("a", 80)+"---\n"+manifest("b", 80))
	write(t, path("c.yaml"), manifest("c", 80))
	write(t, path("d.yaml"), manifest("d", 80))
	c := follow(t, dir)
	c.until("a", "b", "c", "d")

	write(t, path("a.yaml"), manifest("a", 80))
	c.until("a", "c", "d")
	must(t, os.Remove(path("c.yaml")))
	c.until("a", "d")
	must(t, os.Rename(path("d.yaml"), path("d.txt")))
	c.until("a")
	must(t, os.Rename(path("d.txt"), path("e.yaml")))
	c.until("a", "d")
	write(t, path("e.yaml"), "")
	c.until("a")
}

// TestMoved moves an object between files: it never vanishes, and is nowhere
// twice.
func TestMoved(t *testing.T) {
	dir := t.TempDir()
	a, z := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")
	write(t, a, manifest("web", 80))
	c := follow(t, dir)
	c.until("web")
	c.patient()
	names := []string{"web"}
	for i, move := range []func(){
		func() { must(t, os.Rename(a, z)) },
		func() { must(t, os.Rename(z, a)) },
		func() { write(t, a, ""); write(t, z, manifest("web", 80)) },
		func() { write(t, z, ""); write(t, a, manifest("web", 80)) },
	} {
		move()
		mark := fmt.Sprint("mark-", i) // with it, the move is known too
		write(t, filepath.Join(dir, mark+".yaml"), manifest(mark, 80))
		names = append(names, mark)
		c.until(names...)
	}
	if c.vanished["web"] > 0 {
		t.Errorf("web vanished %d times", c.vanished["web"])
	}
}

// TestConfigMap swaps files as the kubelet does: they are links through ..data,
// itself a link, which one rename turns to another directory.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	fill := func(version string, port int) {
		real := filepath.Join(dir, "..v"+version)
		must(t, os.Mkdir(real, 0o755))
		write(t, filepath.Join(real, "a.yaml"), manifest("a", port))
		write(t, filepath.Join(real, "b.yaml"), manifest("b", port))
		must(t, os.Symlink("..v"+version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	fill("1", 80)
	must(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	must(t, os.Symlink("..data/b.yaml", filepath.Join(dir, "b.yaml")))
	c := follow(t, dir)
	c.until("a", "b")
	fill("2", 81)
	must(t, os.RemoveAll(filepath.Join(dir, "..v1")))
	c.untilPort("a", 81)
	c.untilPort("b", 81)
	if len(c.vanished) > 0 {
		t.Errorf("meanwhile these vanished: %v", c.vanished)
	}
}

// TestLinkTarget changes a file outside the directory that a link in it leads
// to, without the help of the look that is taken now and then.
func TestLinkTarget(t *testing.T) {
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "web")
	write(t, target, manifest("web", 80))
	must(t, os.Symlink(target, filepath.Join(dir, "web.yaml")))
	c := follow(t, dir)
	c.dir.rescan = time.Hour
	c.until("web")
	write(t, target, manifest("web", 81))
	c.untilPort("web", 81)
	replace(t, target, manifest("web", 82))
	c.untilPort("web", 82)
	write(t, target, manifest("web", 83))
	c.untilPort("web", 83)
}

// TestNotAFile has things in the directory that only look like files. Opening
// the FIFO would wait for ever.
func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("a.yaml"), manifest("a", 80))
	must(t, os.Mkdir(path("dir.yaml"), 0o755))
	must(t, unix.Mkfifo(path("fifo.yaml"), 0o644))
	must(t, os.Symlink("nowhere", path("link.yaml")))
	must(t, os.Symlink(".", path("self.yaml")))
	c := follow(t, dir)
	c.next()
	want := []string{
		path("dir.yaml") + ": cannot be read: not a regular file; it is left out",
		path("fifo.yaml") + ": cannot be read: not a regular file; it is left out",
		path("link.yaml") + ": cannot be read: no such file or directory; it is left out",
		path("self.yaml") + ": cannot be read: not a regular file; it is left out",
	}
	if diff := cmp.Diff(want, c.told()); diff != "" {
		t.Errorf("problems, want -, got +:\n%s", diff)
	}
	for _, name := range []string{"dir.yaml", "fifo.yaml", "link.yaml", "self.yaml"} {
		must(t, os.Remove(path(name)))
	}
	c.until("a")
}

// told returns the problems that were told and are not mended.
func (c *cluster) told() []string {
	var told []string
	for p, n := range c.problems {
		for range n {
			told = append(told, p.String())
		}
	}
	slices.Sort(told)
	return told
}

// TestDirectoryLost takes the directory away and gives it back.
func TestDirectoryLost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	path := filepath.Join(dir, "a.yaml")
	must(t, os.Mkdir(dir, 0o755))
	write(t, path, manifest("web", 80))
	c := follow(t, dir)
	c.until("web")

	must(t, os.Rename(dir, dir+"~"))
	for len(c.problems) == 0 {
		c.next()
	}
	want := []string{dir + ": cannot be read: no such file or directory; what it said before still counts"}
	if diff := cmp.Diff(want, c.told()); diff != "" {
		t.Errorf("problems, want -, got +:\n%s", diff)
	}
	if c.services["web"] == nil {
		t.Error("the loss of the directory made web vanish")
	}
	must(t, os.Mkdir(dir, 0o755))
	write(t, path, manifest("web", 81))
	c.untilPort("web", 81)
	c.until("web")

	// From now on it is the new one that is watched.
	write(t, path, manifest("web", 82))
	c.untilPort("web", 82)

	must(t, os.RemoveAll(dir))
	must(t, os.Rename(dir+"~", dir))
	c.untilPort("web", 80)
	must(t, os.Remove(path))
	c.until()
}

// TestTwice has one object in several places.
func TestTwice(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("b.yaml"), manifest("web", 80)+"---\n"+manifest("web", 81))
	write(t, path("c.yaml"), manifest("web", 82))
	c := follow(t, dir)
	c.next()
	c.untilPort("web", 80)
	twice := ": Service default/web: is there twice; this one is left out, the other one is at "
	want := []string{
		path("b.yaml") + twice + path("b.yaml"),
		path("c.yaml") + twice + path("b.yaml"),
	}
	if diff := cmp.Diff(want, c.told()); diff != "" {
		t.Errorf("problems, want -, got +:\n%s", diff)
	}
	// Lines move, problems stay.
	write(t, path("b.yaml"), "# a comment\n"+manifest("web", 80)+"---\n"+manifest("web", 81))
	write(t, path("m.yaml"), manifest("mark", 80))
	c.untilPort("mark", 80)
	if diff := cmp.Diff(want, c.told()); diff != "" {
		t.Errorf("problems after lines moved, want -, got +:\n%s", diff)
	}

	write(t, path("b.yaml"), manifest("web", 83))
	c.untilPort("web", 83)
	must(t, os.Remove(path("b.yaml")))
	c.untilPort("web", 82)
	c.until("web", "mark")
}

// TestPlacesOfTwice: both places are named, with their lines.
func TestPlacesOfTwice(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), "# comment\n"+manifest("web", 80))
	write(t, filepath.Join(dir, "b.yaml"), manifest("a", 80)+"---\n"+manifest("web", 80))
	d, err := NewDir(dir)
	must(t, err)
	defer func() { _ = d.Close() }()
	news, err := d.Next(t.Context())
	must(t, err)
	want := []Problem{{
		Place:   Place{filepath.Join(dir, "b.yaml"), 10},
		Object:  Object{"Service", service.Name{Namespace: "default", Name: "web"}},
		Message: "is there twice; this one is left out, the other one is at",
		Also:    Place{filepath.Join(dir, "a.yaml"), 2},
	}}
	if diff := cmp.Diff(want, news.Problems); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

// TestBroken breaks one of two objects and mends it.
func TestBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	good := manifest("a", 80) + "---\n" + manifest("b", 80)
	write(t, path, good)
	c := follow(t, filepath.Dir(path))
	c.until("a", "b")
	write(t, path, manifest("a", 0)+"---\n"+manifest("b", 81))
	c.untilPort("b", 81)
	want := []string{path + `: Service default/a: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`}
	if diff := cmp.Diff(want, c.told()); diff != "" || c.services["a"] != nil {
		t.Errorf("a is there: %v; problems, want -, got +:\n%s", c.services["a"] != nil, diff)
	}
	// It is told once, however often the file is read.
	write(t, path, "# comment\n"+manifest("a", 0)+"---\n"+manifest("b", 82))
	c.untilPort("b", 82)
	if diff := cmp.Diff(want, c.told()); diff != "" {
		t.Errorf("problems after another reading, want -, got +:\n%s", diff)
	}
	write(t, path, good)
	c.until("a", "b")
}

// TestTooLarge makes a file too large to be read: what it said still counts.
func TestTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	write(t, path, manifest("web", 80))
	c := follow(t, filepath.Dir(path))
	c.until("web")
	must(t, os.Truncate(path, maxSize+1))
	for len(c.problems) == 0 {
		c.next()
	}
	want := []string{path + ": cannot be read: larger than 256 MiB; what it said before still counts"}
	if diff := cmp.Diff(want, c.told()); diff != "" || c.vanished["web"] > 0 {
		t.Errorf("web vanished %d times; problems, want -, got +:\n%s", c.vanished["web"], diff)
	}
	write(t, path, manifest("web", 81))
	c.untilPort("web", 81)
	c.until("web")
}

// TestCoalesces: what happens between two calls is one News.
func TestCoalesces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, manifest("web", 1))
	c := follow(t, dir)
	c.until("web")
	c.quiet()
	c.updates = 0
	for port := 2; port <= 1000; port++ {
		write(t, path, manifest("web", port))
	}
	c.untilPort("web", 1000)
	c.quiet()
	if c.updates != 1 {
		t.Errorf("got %d updates, want 1", c.updates)
	}
}

// TestManyFiles makes, changes and removes 500 files.
func TestManyFiles(t *testing.T) {
	dir := t.TempDir()
	c := follow(t, dir)
	c.next()
	var names []string
	for i := range 500 {
		name := fmt.Sprintf("s-%03d", i)
		names = append(names, name)
		write(t, filepath.Join(dir, name+".yaml"), manifest(name, 80))
	}
	c.until(names...)
	for _, name := range names {
		replace(t, filepath.Join(dir, name+".yaml"), manifest(name, 81))
	}
	for _, name := range names {
		c.untilPort(name, 81)
	}
	for _, name := range names {
		must(t, os.Remove(filepath.Join(dir, name+".yaml")))
	}
	c.until()
}

// TestOverflow fills the kernel's event queue, so that the events of the last
// changes are lost.
func TestOverflow(t *testing.T) {
	dir := t.TempDir()
	a, z := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")
	write(t, a, manifest("a", 80))
	write(t, z, manifest("z", 80))
	c := follow(t, dir)
	c.dir.rescan = time.Hour
	c.until("a", "z")
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var events int
	_, err = fmt.Sscan(string(limit), &events)
	must(t, err)
	for range events/2 + 1 {
		must(t, os.Rename(a, a+"~"))
		must(t, os.Rename(a+"~", a))
	}
	write(t, z, manifest("z", 81))
	c.untilPort("z", 81)
	c.until("a", "z")
}

// TestNoChangeIsLost edits at random while a reader follows, and compares what
// it knows at the end with what a new reader finds.
func TestNoChangeIsLost(t *testing.T) {
	const edits = 3000
	dir := t.TempDir()
	c := follow(t, dir)
	c.next()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	e := editor{dir: dir, random: rand.New(rand.NewPCG(seed, 0))}
	done := make(chan error, 1)
	go func() {
		for range edits {
			if err := e.edit(); err != nil {
				done <- err
				return
			}
		}
		done <- os.WriteFile(filepath.Join(dir, "zz-end.yaml"), []byte(manifest("end", 80)), 0o644)
	}()
	for c.services["end"] == nil {
		c.next()
	}
	must(t, <-done)

	fresh := follow(t, dir)
	fresh.next()
	for cmp.Diff(fresh.services, c.services, opaque)+cmp.Diff(fresh.problems, c.problems) != "" {
		c.next()
	}
	t.Logf("%d edits in %d updates", edits, c.updates)
}

// editor makes random edits that overlap in every way.
type editor struct {
	dir    string
	random *rand.Rand
}

func (e *editor) edit() error {
	path := filepath.Join(e.dir, fmt.Sprintf("f%d.yaml", e.random.IntN(8)))
	text := e.text()
	switch e.random.IntN(8) {
	case 0:
		return ignoreMissing(os.Remove(path))
	case 1:
		return ignoreMissing(os.Rename(path, filepath.Join(e.dir, fmt.Sprintf("f%d.yaml", e.random.IntN(8)))))
	case 2, 3:
		if err := os.WriteFile(path+"~", []byte(text), 0o644); err != nil {
			return err
		}
		return os.Rename(path+"~", path)
	case 4:
		return e.writeSlowly(path, text)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (e *editor) writeSlowly(path, text string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for piece := range slices.Chunk([]byte(text), 40) {
		if _, err := f.Write(piece); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// text has some objects of ten, one of which may be wrong.
func (e *editor) text() string {
	var b strings.Builder
	for range e.random.IntN(4) {
		port := e.random.IntN(20)
		b.WriteString("---\n" + manifest(fmt.Sprintf("s%d", e.random.IntN(10)), port))
	}
	if e.random.IntN(5) == 0 {
		b.WriteString("---\nbroken: [\n")
	}
	return b.String()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
