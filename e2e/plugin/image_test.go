package plugin

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// file is one of an archive.
type file struct {
	name string
	mode int64
	text []byte
}

func newArchive(t *testing.T, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, f := range files {
		if err := archive.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// newLayer is a file system with one static program.
func newLayer(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(programs.Dir(t), "fairlead-lab"))
	if err != nil {
		t.Fatal(err)
	}
	return newArchive(t, file{"fairlead-lab", 0o755, program})
}

// newImage is an image of that file system (OCI image layout, version 1.0.0).
func newImage(t *testing.T, name string) []byte {
	t.Helper()
	const vendor = "application/vnd.oci.image."
	files := []file{{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	blob := func(mediaType string, text []byte) object {
		sum := sha256.Sum256(text)
		digest := hex.EncodeToString(sum[:])
		files = append(files, file{"blobs/sha256/" + digest, 0o644, text})
		return object{"mediaType": vendor + mediaType, "digest": "sha256:" + digest, "size": len(text)}
	}
	layer := blob("layer.v1.tar", newLayer(t))
	config := blob("config.v1+json", marshal(t, object{
		"architecture": runtime.GOARCH, "os": runtime.GOOS, "config": object{},
		"rootfs": object{"type": "layers", "diff_ids": []any{layer["digest"]}},
	}))
	manifest := blob("manifest.v1+json", marshal(t, object{
		"schemaVersion": 2, "mediaType": vendor + "manifest.v1+json", "config": config, "layers": []object{layer},
	}))
	manifest["annotations"] = object{"io.containerd.image.name": name}
	return newArchive(t, append(files, file{"index.json", 0o644, marshal(t, object{"schemaVersion": 2, "manifests": []object{manifest}})})...)
}

func marshal(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
