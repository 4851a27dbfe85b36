package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Where etcd listens, on the loopback of its namespace.
const (
	etcdURL     = "http://127.0.0.1:2379"
	etcdPeerURL = "http://127.0.0.1:2380"
)

// startEtcd runs etcd on the data below dir. What it writes need not survive the
// machine, so it does not wait for the disk.
func startEtcd(ns *netns.NS, dir string) (*Process, error) {
	return StartProcess(ns, filepath.Join(dir, "etcd.log"), exec.Command("etcd",
		"--data-dir", filepath.Join(dir, "etcd"),
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", etcdPeerURL, "--initial-advertise-peer-urls", etcdPeerURL,
		"--initial-cluster", "default="+etcdPeerURL,
		"--unsafe-no-fsync", "--log-level", "warn"))
}

// Compact has etcd forget the past: only the latest revision of each object is
// left. (It is done by etcd's JSON gateway, since etcdctl is another package.)
func (s *Server) Compact(ctx context.Context) error {
	var status struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := s.etcdCall(ctx, "maintenance/status", struct{}{}, &status); err != nil {
		return err
	}
	compaction := map[string]any{"revision": status.Header.Revision, "physical": true}
	return s.etcdCall(ctx, "kv/compaction", compaction, &struct{}{})
}

func (s *Server) etcdCall(ctx context.Context, call string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, etcdURL+"/v3/"+call, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dialIn(s.ns), DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("etcd %s: %w", call, err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd %s: %s: %s %w", call, response.Status, answer, err)
	}
	return json.Unmarshal(answer, out)
}
