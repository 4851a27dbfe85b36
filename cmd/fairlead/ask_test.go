package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

const webManifest = `
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10]
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: wrong}
spec:
  clusterIPs: [10.96.0.x]
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP, name: ""}]
endpoints:
- {addresses: [10.244.1.9], conditions: {ready: false}}
- {addresses: [10.244.1.7], nodeName: node-1}
`

// What an operator asks of a running proxy.
func TestAskProxy(t *testing.T) {
	ns, dir := netns.NewT(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(webManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "proxy.sock")
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	var errs bytes.Buffer
	log := &until{w: &errs, text: "msg=synced"}
	answers := map[string]string{}
	var ask func()
	log.then = sync.OnceFunc(func() { go ask() }) // the proxy answers when it has written its log
	ask = func() {
		defer stop()
		for _, question := range []string{"services web", "services --namespace other", "services web -o wide", "services web -o yaml", "services gone",
			"trace --from 10.244.1.7 --to 10.96.0.10:80", "trace --from 10.244.1.7 --to 10.96.0.10:80/udp -o json", "status"} {
			answers[question] = answer(t, ns, question+" --socket "+socket)
		}
		answers["completion"] = answer(t, ns, "__complete services --socket "+socket+" def")
	}
	in(t, ns, func() int {
		e := testEnv(new(bytes.Buffer), &errs)
		e.stderr = log
		return run(ctx, []string{"proxy", "--manifests", dir, "--mode", "iptables", "--inspect-socket", socket, "--bpf-root", dir}, e)
	})
	if !log.seen {
		t.Fatalf("log:\n%s", &errs)
	}
	want := map[string]string{
		"services web": `
SERVICE      PORT  DESTINATION        FROM          TO
default/web  -     10.96.0.10:80/tcp  pod           10.244.1.7:8080
default/web  -     10.96.0.10:80/tcp  node,outside  10.244.1.7:8080*
`,
		"services web -o wide": `
SERVICE      PORT  DESTINATION        CONNECTIONS  FROM     TO
default/web  -     10.96.0.10:80/tcp  0            pod      10.244.1.7:8080
default/web  -     10.96.0.10:80/tcp  0            node     10.244.1.7:8080*
default/web  -     10.96.0.10:80/tcp  0            outside  10.244.1.7:8080*
`,
		"completion":                 "default/web\n:4\n",
		"services --namespace other": "SERVICE  PORT  DESTINATION  FROM  TO\n",
		"services gone":              "exit 1: fairlead: service gone: the proxy of this node has no destination of it\n",
		"trace --from 10.244.1.7 --to 10.96.0.10:80": `
sender               10.244.1.7 is a pod: in 10.244.1.0/24
destination          10.96.0.10:80/tcp is the cluster IP of default/web
policy               internalTrafficPolicy Cluster: endpoints of all nodes
endpoints            1 of 2: ready ones
masquerade           no: pods reach cluster IPs with their own address
verdict              forwarded to these in turn
  → 10.244.1.7:8080  not known: no route leads to 10.244.1.7 (network is unreachable), so that nothing of it comes in here, sees an address of this node (node node-1)
  - 10.244.1.9:8080  not ready
kernel               has all this as it should
`,
	}
	for question, want := range want {
		if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), answers[question]); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", question, diff)
		}
	}
	for question, pattern := range map[string]string{
		"services web -o yaml": `(?s)destination: 10.96.0.10:80.*sender: pod`,
		"trace --from 10.244.1.7 --to 10.96.0.10:80/udp -o json": `(?s)"verdict": "pass".*there is 80/tcp of default/web`,
		"status": `(?s)proxy +\w+: version \w+ on node node-1.*iptables.*objects +manifests /.*left out +.*wrong.*10.96.0.x`,
	} {
		if !regexp.MustCompile(pattern).MatchString(answers[question]) {
			t.Errorf("%s: not like %s:\n%s", question, pattern, answers[question])
		}
	}
	if got := answer(t, ns, "status --socket "+socket); !strings.Contains(got, "exit 1") || !strings.Contains(got, "'fairlead proxy' at "+socket+": it does not run there") {
		t.Errorf("after the proxy's end: %s", got)
	}
}

// answer is what a command line prints; a failure is told with its exit code.
func answer(t *testing.T, ns *netns.NS, line string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code := -1
	err := ns.Do(func() error {
		code = run(t.Context(), strings.Fields(line), testEnv(&out, &errs))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if code != exitOK {
		fmt.Fprintf(&out, "exit %d: %s", code, &errs)
	}
	return out.String()
}
