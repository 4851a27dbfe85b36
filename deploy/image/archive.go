package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// writeArchive writes the images of the platforms as one, and returns its digest.
func (o options) writeArchive(platforms []string, images map[string][]tree) (v1.Hash, error) {
	index := v1.ImageIndex(empty.Index)
	for _, platform := range platforms {
		image, err := o.image(platform, images[platform])
		if err != nil {
			return v1.Hash{}, fmt.Errorf("make the image for %s: %w", platform, err)
		}
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			return v1.Hash{}, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: p}})
	}
	digest, err := index.Digest()
	if err != nil {
		return digest, err
	}
	dir, err := os.MkdirTemp("", "fairlead-image-")
	if err != nil {
		return digest, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return digest, err
	}
	// The first annotation is what containerd knows an image by, the second OCI.
	if err := to.ReplaceIndex(index, match.Digests(digest), layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          o.name,
		"org.opencontainers.image.ref.name": o.name,
	})); err != nil {
		return digest, err
	}
	return digest, pack(dir, o.out)
}

func (o options) image(platform string, layers []tree) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	_, arch, _ := strings.Cut(platform, "/")
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: arch,
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()}, // the same each time
		Config: v1.Config{
			Entrypoint: []string{"/usr/bin/fairlead"},
			Env:        []string{"PATH=/usr/sbin:/usr/bin"},
			Labels: map[string]string{
				"org.opencontainers.image.title":    "Fairlead",
				"org.opencontainers.image.version":  o.version,
				"org.opencontainers.image.licenses": "Apache-2.0 AND GPL-2.0-or-later AND LGPL-2.1-or-later", // iptables, the C library
			},
		},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for _, t := range layers {
		var text bytes.Buffer
		if err := t.write(&text); err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(text.Bytes())), nil
		}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return nil, err
		}
	}
	return image, nil
}

// pack makes an archive of an image layout.
func pack(dir, out string) error {
	files := tree{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		files[filepath.ToSlash(name)] = entry{mode: 0o644, text: text}
		return err
	})
	if err != nil {
		return err
	}
	unfinished := out + ".unfinished"
	file, err := os.Create(unfinished)
	if err != nil {
		return err
	}
	if err := files.write(file); err != nil {
		_ = file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(unfinished, out)
}
