package kube_test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/place"
)

// What 'make image' makes for two platforms is taken and run by containerd and podman, and
// so is what podman makes of deploy/Dockerfile.
func TestImage(t *testing.T) {
	const name = "localhost/fairlead:made"
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), "make", "-C", "../..", "image", "BIN="+dir, "IMAGE="+name)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	archive := filepath.Join(dir, "fairlead-image.tar")
	t.Run("containerd", func(t *testing.T) {
		c := place.NewContainerd(t, netns.NewT(t), "")
		c.Import(t, archive)
		checkPrograms(t, func(args ...string) string {
			return c.Run(t, append([]string{"ctr", "run", "--rm", "--snapshotter=native", "--cgroup=" + c.Cgroup, "--read-only", name, "one"}, args...)...)
		})
	})
	t.Run("podman", func(t *testing.T) {
		p := place.NewPodman(t, netns.NewT(t), "")
		p.Podman(t, "load", "--input", archive)
		checkPrograms(t, inPodman(t, p, name))
	})
	t.Run("arm64", func(t *testing.T) {
		if _, err := exec.LookPath("qemu-aarch64-static"); err != nil {
			t.Skip("Debian's package qemu-user-static is not installed")
		}
		p := place.NewPodman(t, netns.NewT(t), "")
		id := strings.TrimSpace(p.Podman(t, "pull", "--quiet", "--arch=arm64", "oci-archive:"+archive))
		root := strings.TrimSpace(p.Podman(t, "image", "mount", id))
		checkPrograms(t, func(args ...string) string {
			if strings.HasPrefix(args[0], "/usr/sbin/ip") && !strings.HasSuffix(args[0], "-legacy") {
				return "(nf_tables)" // qemu has no sockets of nf_tables, without which they do not begin
			}
			return p.Run(t, append([]string{"qemu-aarch64-static", "-L", root, root + args[0]}, args[1:]...)...)
		})
	})
	t.Run("Dockerfile", func(t *testing.T) {
		p := place.NewPodman(t, netns.NewT(t), "")
		p.Podman(t, "import", "--change=ENV PATH=/usr/local/go/bin:/usr/bin", "--change=ENV HOME=/root", writeGoImage(t, dir), "localhost/go")
		source, err := filepath.Abs("../..")
		if err != nil {
			t.Fatal(err)
		}
		build := []string{"build", "--file=" + source + "/deploy/Dockerfile", "--build-arg=GO_IMAGE=localhost/go", "--pull=never", "--tag=localhost/fairlead:built", "--isolation=chroot"}
		p.Podman(t, append(build, append(goImageVolumes(t), source)...)...)
		checkPrograms(t, inPodman(t, p, "localhost/fairlead:built"))
	})
}

func inPodman(t *testing.T, p *place.Podman, image string) func(args ...string) string {
	return func(args ...string) string {
		t.Helper()
		return p.Podman(t, append([]string{"run", "--rm", "--network=none", "--read-only",
			"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", // its defaults are more than some machines allow
			"--entrypoint=" + args[0], image}, args[1:]...)...)
	}
}

// checkPrograms runs what is in an image.
func checkPrograms(t *testing.T, run func(args ...string) string) {
	t.Helper()
	for command, want := range map[string]string{
		"/usr/bin/fairlead version":                      sourceVersion(t),
		"/usr/bin/fairlead-cni":                          "1.1.0", // one of the versions that it speaks
		"/usr/sbin/iptables --version":                   "(nf_tables)",
		"/usr/sbin/ip6tables-restore --version":          "(nf_tables)",
		"/usr/sbin/xtables-legacy-multi iptables --help": "iptables -[ACD] chain rule-specification",
		"/usr/sbin/iptables-legacy --version":            "(legacy)",
	} {
		if got := run(strings.Fields(command)...); !strings.Contains(got, want) {
			t.Errorf("%s says %q, want %q", command, got, want)
		}
	}
}

// sourceVersion is what the Makefile says of the programs.
func sourceVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// writeGoImage writes a file system that has nothing of its own: what deploy/Dockerfile
// needs of an image with Go is this machine's (goImageVolumes).
func writeGoImage(t *testing.T, dir string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Name: "usr", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "etc", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "root", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "tmp", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"}, {Name: "sbin", Typeflag: tar.TypeSymlink, Linkname: "usr/sbin"},
		{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}, {Name: "lib64", Typeflag: tar.TypeSymlink, Linkname: "usr/lib64"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "go.tar")
	if err := os.WriteFile(path, layer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// goImageVolumes are this machine's Go and tools, and what Go has downloaded and built.
func goImageVolumes(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dirs := strings.Fields(string(out))
	return []string{
		"--volume=/usr:/usr:ro", "--volume=/etc/ssl:/etc/ssl:ro", "--volume=" + dirs[0] + ":/usr/local/go:ro",
		"--volume=" + dirs[1] + ":/root/go/pkg/mod", "--volume=" + dirs[2] + ":/root/.cache/go-build",
		"--volume=" + filepath.Join(cache, "fairlead") + ":/root/.cache/fairlead",
	}
}
