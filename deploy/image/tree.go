package main

import (
	"archive/tar"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// tree is the files of a layer by their paths, which have no slash in front.
// Folders above a file need no entry.
type tree map[string]entry

// entry is a file, a symbolic link if it has a target, or a folder.
type entry struct {
	mode   int64
	text   []byte
	target string
	folder bool
}

// parents adds the folders that are above others.
func (t tree) parents() {
	for _, name := range slices.Collect(maps.Keys(t)) {
		for up := path.Dir(name); up != "."; up = path.Dir(up) {
			if _, ok := t[up]; !ok {
				t[up] = entry{mode: 0o755, folder: true}
			}
		}
	}
}

// write writes a tar archive that depends on nothing but the tree.
func (t tree) write(w io.Writer) error {
	t.parents()
	archive := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		e := t[name]
		h := &tar.Header{Name: name, Mode: e.mode, Size: int64(len(e.text)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		switch {
		case e.folder:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		case e.target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(e.text); err != nil {
			return err
		}
	}
	return archive.Close()
}

// writeTo writes the files below a directory.
func (t tree) writeTo(root string) error {
	t.parents()
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if err := t[name].writeTo(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

func (e entry) writeTo(path string) error {
	switch {
	case e.folder:
		return os.MkdirAll(path, os.FileMode(e.mode))
	case e.target != "":
		return os.Symlink(e.target, path)
	}
	return os.WriteFile(path, e.text, os.FileMode(e.mode))
}
