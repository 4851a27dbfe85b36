package watch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The benchmarks have 10,000 Services of 5 endpoints each.
const benchServices = 10_000

// layouts are the ways in which they lie in the directory.
var layouts = []struct {
	name  string
	files int
}{{"1 file", 1}, {"1000 files", 1000}}

// BenchmarkFirstNews reads the directory for the first time.
func BenchmarkFirstNews(b *testing.B) {
	for _, layout := range layouts {
		b.Run(layout.name, func(b *testing.B) {
			dir := b.TempDir()
			b.SetBytes(int64(fillDir(b, dir, layout.files)))
			for b.Loop() {
				d := benchFirst(b, dir)
				_ = d.Close()
			}
		})
	}
}

// BenchmarkChange changes one endpoint: from the writing of its file, which is
// part of what is measured, to the News.
func BenchmarkChange(b *testing.B) {
	for _, layout := range layouts {
		b.Run(layout.name, func(b *testing.B) {
			dir := b.TempDir()
			fillDir(b, dir, layout.files)
			path := filepath.Join(dir, "0000.yaml")
			text, err := os.ReadFile(path)
			if err != nil {
				b.Fatal(err)
			}
			even := string(text)
			odd := strings.Replace(even, "10.0.0.1", "10.9.9.9", 1)
			d := benchFirst(b, dir)
			defer func() { _ = d.Close() }()
			for i := 0; b.Loop(); i++ {
				if err := os.WriteFile(path, []byte([]string{odd, even}[i%2]), 0o644); err != nil {
					b.Fatal(err)
				}
				news, err := d.Next(b.Context())
				if err != nil || len(news.Update.Slices) != 1 || len(news.Update.Services) != 0 {
					b.Fatalf("got %d slices and %d Services, error %v, want one slice",
						len(news.Update.Slices), len(news.Update.Services), err)
				}
			}
		})
	}
}

func benchFirst(b *testing.B, dir string) *Dir {
	b.Helper()
	d, err := NewDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	news, err := d.Next(b.Context())
	if err != nil || len(news.Update.Slices) != benchServices || len(news.Problems) != 0 {
		b.Fatalf("got %d slices, problems %v, error %v", len(news.Update.Slices), news.Problems, err)
	}
	return d
}

// fillDir writes the Services into so many files, and returns the size of all.
func fillDir(b *testing.B, dir string, files int) int {
	b.Helper()
	size := 0
	for file := range files {
		var text strings.Builder
		for i := file; i < benchServices; i += files {
			writeBenchService(&text, i)
		}
		path := filepath.Join(dir, fmt.Sprintf("%04d.yaml", file))
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			b.Fatal(err)
		}
		size += text.Len()
	}
	return size
}

// writeBenchService writes a Service and its slice as a cluster has them.
func writeBenchService(w *strings.Builder, i int) {
	name := fmt.Sprintf("web-%d", i)
	fmt.Fprintf(w, `---
apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  namespace: shop
  labels:
    app: %[1]s
spec:
  type: ClusterIP
  clusterIP: 10.96.%[2]d.%[3]d
  clusterIPs:
  - 10.96.%[2]d.%[3]d
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  selector:
    app: %[1]s
  ports:
  - name: http
    port: 80
    protocol: TCP
    targetPort: 8080
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s-abcde
  namespace: shop
  labels:
    kubernetes.io/service-name: %[1]s
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
addressType: IPv4
ports:
- name: http
  port: 8080
  protocol: TCP
endpoints:
`, name, i/250, i%250+1)
	for endpoint := range 5 {
		fmt.Fprintf(w, `- addresses:
  - 10.%d.%d.%d
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node-%d
  targetRef:
    kind: Pod
    name: %s-%d
    namespace: shop
    uid: 6f1f2c1e-1234-4bcd-9c1d-%012d
`, endpoint, i/250, i%250+1, endpoint, name, endpoint, i)
	}
}
