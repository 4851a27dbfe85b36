package install

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/smalldisk"
)

var values = Values{
	NodeName: "node-1",
	PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
	MTU:      1430,
}

func TestRender(t *testing.T) {
	oneFamily := values
	oneFamily.PodCIDRs, oneFamily.MTU = values.PodCIDRs[1:], 0
	chained := filepath.Join(t.TempDir(), "template")
	text := `{"cniVersion": "1.0.0", "name": {{json .NodeName}}, "plugins": [{"type": "fairlead-cni"}, {"type": "portmap"}]}`
	if err := os.WriteFile(chained, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, template string
		values         Values
	}{{"default", "", values}, {"one-family", "", oneFamily}, {"chained", chained, values}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			template, err := ParseTemplate(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			got, err := template.Render(tt.values)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, filepath.Join("testdata", tt.name+".conflist"), string(got))
		})
	}
}

func TestBadTemplates(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"syntax", `{{`, "unclosed action"},
		{"unknown value", `{{.Nodename}}`, "can't evaluate field Nodename"},
		{"no list", `{"type": "fairlead-cni"}`, "the template makes no network configuration list"},
		{"no JSON", `{"mtu": {{.NodeName}}}`, "the template makes no network configuration list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "template")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ParseTemplate(path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestInstall(t *testing.T) {
	source, bin, conf := filepath.Join(t.TempDir(), "plugin"), t.TempDir(), t.TempDir()
	for _, content := range []string{"first", "second"} {
		if err := os.WriteFile(source, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		// A process that was killed while it wrote left a half.
		if err := os.WriteFile(filepath.Join(bin, Plugin+".new"), []byte("ha"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Binary(source, bin); err != nil {
			t.Fatal(err)
		}
		if err := Config(conf, []byte(content)); err != nil {
			t.Fatal(err)
		}
		expect(t, filepath.Join(bin, Plugin), content, 0o755)
		expect(t, filepath.Join(bin, IPAM), content, 0o755)
		expect(t, filepath.Join(conf, Conflist), content, 0o600)
		if left, _ := filepath.Glob(filepath.Join(bin, "*.new")); left != nil {
			t.Errorf("left over: %s", left)
		}
	}
	before := []os.FileInfo{stat(t, filepath.Join(bin, Plugin)), stat(t, filepath.Join(conf, Conflist))}
	if err := Binary(source, bin); err != nil {
		t.Fatal(err)
	}
	if err := Config(conf, []byte("second")); err != nil {
		t.Fatal(err)
	}
	after := []os.FileInfo{stat(t, filepath.Join(bin, Plugin)), stat(t, filepath.Join(conf, Conflist))}
	for i := range before {
		if !os.SameFile(before[i], after[i]) {
			t.Errorf("%s is written again though nothing differs", before[i].Name())
		}
	}
	for range 2 {
		if err := RemoveConfig(conf); err != nil {
			t.Fatal(err)
		}
	}
	if entries, _ := os.ReadDir(conf); len(entries) > 0 {
		t.Errorf("left over: %v", entries)
	}
}

// A file that cannot be written leaves what was there, and nothing else.
func TestInstallFails(t *testing.T) {
	conf := t.TempDir()
	file := filepath.Join(conf, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"Config": Config(filepath.Join(file, "net.d"), nil), "Binary": Binary(file, filepath.Join(file, "bin"))} {
		if err == nil {
			t.Errorf("%s: no error for a directory that cannot be made", name)
		}
	}
	made := filepath.Join(conf, "etc", "net.d")
	if err := Config(made, []byte("text")); err != nil {
		t.Errorf("a directory that is not there yet: %v", err)
	}
	expect(t, filepath.Join(made, Conflist), "text", 0o600)
	if err := os.Mkdir(filepath.Join(conf, Conflist), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Config(conf, []byte("text")); err == nil {
		t.Error("no error for a file that is a directory")
	}
	if _, err := os.Lstat(filepath.Join(conf, Conflist+".new")); err == nil {
		t.Error("the temporary file is left")
	}
}

// On a disk that is full, and on one that can only be read, what is installed stays as it
// is.
func TestDisk(t *testing.T) { smalldisk.Run(t, "64k", tryDisk) }

func tryDisk(t *testing.T, dir string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(source, bytes.Repeat([]byte("old"), 1<<12), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Binary(source, dir), Config(dir, []byte("old"))); err != nil {
		t.Fatal(err)
	}
	fails := func(reason syscall.Errno) {
		t.Helper()
		if err := os.WriteFile(source, bytes.Repeat([]byte("new"), 1<<15), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{Plugin: Binary(source, dir), Conflist: Config(dir, bytes.Repeat([]byte("new"), 1<<15))} {
			if !errors.Is(err, reason) || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
				t.Errorf("error %v, want that %s for %s", err, reason.Error(), name)
			}
		}
		expect(t, filepath.Join(dir, Plugin), strings.Repeat("old", 1<<12), 0o755)
		expect(t, filepath.Join(dir, Conflist), "old", 0o600)
		if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); left != nil {
			t.Errorf("left over: %s", left)
		}
	}
	fails(unix.ENOSPC)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	fails(unix.EROFS)
}

func expect(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(content)) {
		t.Errorf("%s is %q, want %q", path, got, content)
	}
	if got := stat(t, path).Mode().Perm(); got != mode {
		t.Errorf("%s has mode %o, want %o", path, got, mode)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
