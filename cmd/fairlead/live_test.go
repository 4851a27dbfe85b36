package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/inspect"
)

// In mode ebpf an operator sees what happens while it does, and afterwards how much of
// it there was.
func TestLive(t *testing.T) {
	ns, dir, group := netns.NewT(t), t.TempDir(), cgroup.NewT(t)
	ns.RunT(t, "sh", "-ec", "ip link set lo up; ip route add default dev lo")
	ns.Join(group)
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(webManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, root := filepath.Join(dir, "proxy.sock"), filepath.Join(t.TempDir(), "bpf")
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	connecting, connected := context.WithCancel(ctx)
	var live, status bytes.Buffer
	seen := &until{w: &live, text: "10.96.0.10:80", then: connected}
	var ended sync.WaitGroup
	look := func() {
		defer stop()
		watching, enough := context.WithCancel(ctx)
		ended.Go(func() {
			e := testEnv(new(bytes.Buffer), new(bytes.Buffer))
			e.stdout = seen
			run(watching, strings.Fields("trace --live -o json --to 10.96.0.10:80/tcp --socket "+socket), e)
		})
		connectUntil(connecting, t, ns, "10.96.0.10:80")
		enough()
		ended.Wait()
		run(ctx, strings.Fields("status --socket "+socket), testEnv(&status, new(bytes.Buffer)))
	}
	var log bytes.Buffer
	in(t, ns, func() int {
		e := testEnv(new(bytes.Buffer), new(bytes.Buffer))
		e.stderr = &until{w: &log, text: "msg=synced", then: sync.OnceFunc(func() { go look() })}
		return run(ctx, []string{"proxy", "--mode", "ebpf", "--manifests", dir, "--inspect-socket", socket, "--bpf-root", root, "--cgroup-root", group.Path}, e)
	})
	in(t, ns, func() int {
		return run(t.Context(), []string{"cleanup", "--mode", "ebpf", "--bpf-root", root}, testEnv(new(bytes.Buffer), new(bytes.Buffer)))
	})

	line, _, _ := strings.Cut(live.String(), "\n")
	var e inspect.Event
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%v: %q; log:\n%s", err, live.String(), &log)
	}
	if e.Path != "socket" || e.Outcome != "forwarded" || e.Service != "default/web" || e.Backend.String() != "10.244.1.7:8080" || e.Process != os.Getpid() {
		t.Errorf("seen: %+v", e)
	}
	if !strings.Contains(status.String(), "forwarded") {
		t.Errorf("status does not count what happened:\n%s", &status)
	}
}

// connectUntil connects again and again: nobody knows when who looks on sees.
func connectUntil(ctx context.Context, t *testing.T, ns *netns.NS, to string) {
	for ctx.Err() == nil {
		err := ns.Do(func() error {
			conn, err := net.DialTimeout("tcp", to, 20*time.Millisecond)
			if err == nil {
				_ = conn.Close()
			}
			return nil // there is no endpoint
		})
		if err != nil {
			t.Error(err)
			return
		}
	}
}
