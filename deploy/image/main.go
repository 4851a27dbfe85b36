// Command image makes Fairlead's OCI image, for several platforms at once, without
// a container engine: a layer of Debian's iptables with the libraries that it needs,
// and a layer of Fairlead's own programs. The same input gives the same bytes.
//
//	image --programs DIR --version V --out FILE    archive of an OCI image layout
//	image --programs DIR --root DIR                the file system of one platform
//	image --lock                                   what packages there are now, as packages.lock has them
//
// Programs are at DIR/linux-amd64/fairlead and so on.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options are the flags as given.
type options struct {
	programs, root, out      string
	version, name, platforms string
	lock                     bool
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.programs, "programs", "", "directory with the programs of each platform, DIR/linux-amd64/fairlead and so on")
	flag.StringVar(&o.root, "root", "", "write the file system of the only platform into this directory, in place of an image")
	flag.StringVar(&o.out, "out", "", "write an archive of an OCI image layout to this file")
	flag.StringVar(&o.version, "version", "unknown", "version of the programs, for a label")
	flag.StringVar(&o.name, "name", "localhost/fairlead:latest", "name of the image in the archive")
	flag.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "what the image is for")
	flag.BoolVar(&o.lock, "lock", false, "print what packages.lock is to have now")
	flag.Parse()
	if o.lock {
		return printLock(ctx, os.Stdout)
	}
	if (o.out == "") == (o.root == "") {
		return fmt.Errorf("--out, --root: one of them, and only one, must say where to write")
	}
	platforms := strings.Split(o.platforms, ",")
	if o.root != "" {
		if len(platforms) > 1 {
			return fmt.Errorf("--platforms %s: a --root has one", o.platforms)
		}
		layers, err := o.layers(ctx, platforms[0])
		if err != nil {
			return err
		}
		for _, layer := range layers {
			if err := layer.writeTo(o.root); err != nil {
				return err
			}
		}
		return nil
	}
	images := map[string][]tree{}
	for _, p := range platforms {
		var err error
		if images[p], err = o.layers(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	digest, err := o.writeArchive(platforms, images)
	if err != nil {
		return err
	}
	fmt.Println(o.name, digest)
	return nil
}

// layers are those of a platform's image, the lowest first.
func (o options) layers(ctx context.Context, platform string) ([]tree, error) {
	system, arch, _ := strings.Cut(platform, "/")
	if system != "linux" {
		return nil, fmt.Errorf("platform %q: allowed are linux/amd64, linux/arm64", platform)
	}
	base, err := debian(ctx, arch)
	if err != nil {
		return nil, err
	}
	own := tree{}
	for _, name := range []string{"fairlead", "fairlead-cni"} {
		text, err := os.ReadFile(filepath.Join(o.programs, system+"-"+arch, name))
		if err != nil {
			return nil, err
		}
		own["usr/bin/"+name] = entry{mode: 0o755, text: text}
	}
	return []tree{base, own}, nil
}
