package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	_ "embed" // packages.lock
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"pault.ag/go/debian/deb"
)

// packages has a line "ARCH SHA256 URL" for each Debian package.
//
//go:embed packages.lock
var packages string

// kept are the files of the packages that iptables, of either variant, works with,
// and the terms of those who made them.
var kept = []string{
	"usr/sbin/iptables*", "usr/sbin/ip6tables*", "usr/sbin/xtables-*-multi",
	"usr/lib/*/xtables/*.so",
	"usr/lib/*/libip[46]tc.so.*", "usr/lib/*/libxtables.so.*", "usr/lib/*/libmnl.so.*",
	"usr/lib/*/libnfnetlink.so.*", "usr/lib/*/libnetfilter_conntrack.so.*", "usr/lib/*/libnftnl.so.*",
	"usr/lib/*/libc.so.6", "usr/lib/*/libm.so.6",
	"usr/lib*/ld-linux-*.so.*", "usr/lib/*/ld-linux-*.so.*",
	"etc/protocols",
	"usr/share/doc/*/copyright",
}

// left are files of those that are not.
var left = []string{"usr/sbin/iptables-apply", "usr/sbin/ip6tables-apply"}

// debian is the layer below Fairlead's programs.
func debian(ctx context.Context, arch string) (tree, error) {
	layer := tree{
		"bin": {target: "usr/bin"}, "sbin": {target: "usr/sbin"}, "lib": {target: "usr/lib"}, "lib64": {target: "usr/lib64"},
		"run": {mode: 0o755, folder: true}, "tmp": {mode: 0o1777, folder: true}, "var/run": {target: "/run"},
	}
	found := false
	for line := range strings.Lines(packages) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != arch {
			continue
		}
		found = true
		file, err := fetch(ctx, fields[2], fields[1])
		if err != nil {
			return nil, err
		}
		if err := layer.unpack(file); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", file, err)
		}
	}
	if !found {
		return nil, fmt.Errorf("architecture %q: packages.lock has none", arch)
	}
	// What Debian's alternatives would do.
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			layer["usr/sbin/"+family+verb] = entry{target: "xtables-nft-multi"}
		}
	}
	return layer, nil
}

// fetch downloads a file if it is not yet in the cache, and returns its path there.
func fetch(ctx context.Context, url, sum string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(cache, "fairlead", "debian", sum+".deb")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	text, err := get(ctx, url)
	if err != nil {
		return "", fmt.Errorf("get %s: %w (does the mirror have a newer one? then 'make image-lock')", url, err)
	}
	if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum {
		return "", fmt.Errorf("get %s: its SHA-256 is %x, packages.lock says %s", url, got, sum)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	unfinished := fmt.Sprintf("%s.%d", file, os.Getpid())
	if err := os.WriteFile(unfinished, text, 0o644); err != nil {
		return "", err
	}
	return file, os.Rename(unfinished, file)
}

func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	return io.ReadAll(response.Body)
}

// unpack adds what is kept of a Debian package.
func (t tree) unpack(file string) error {
	pkg, closer, err := deb.LoadFile(file)
	if err != nil {
		return err
	}
	defer func() { _ = closer() }()
	for {
		h, err := pkg.Data.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir || !matches(kept, name) || matches(left, name) {
			continue
		}
		e := entry{mode: h.Mode & 0o777, target: h.Linkname}
		if e.text, err = io.ReadAll(pkg.Data); err != nil {
			return err
		}
		t[name] = e
	}
}

func matches(globs []string, name string) bool {
	for _, g := range globs {
		if ok, _ := path.Match(g, name); ok { // the globs are constant
			return true
		}
	}
	return false
}
