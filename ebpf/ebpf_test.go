package ebpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/bpffs"
	"github.com/fairlead/fairlead/e2e/netns"
)

func TestMain(m *testing.M) { bpffs.Main(m) }

func TestLoad(t *testing.T) {
	cg := "/sys/fs/cgroup/unified/fl-sock-test"
	_ = os.Mkdir(cg, 0o755)
	defer func() { _ = os.Remove(cg) }()
	root := filepath.Join(t.TempDir(), "bpf")
	var d *DataPath
	err := netns.NewT(t).Do(func() (err error) {
		if d, err = Load(Config{Root: root, CgroupRoot: cg}); err != nil {
			return err
		}
		return d.Publish()
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	for _, h := range d.hooks() {
		info, _ := h.program.Info()
		n, _ := info.VerifiedInstructions()
		t.Log(h.name, n)
	}
	t.Log(d.Intact())
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := netns.NewT(t).Do(func() error { return Remove(root) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err == nil {
		t.Log("there")
		e, _ := os.ReadDir(root)
		t.Log(e)
	}
}
