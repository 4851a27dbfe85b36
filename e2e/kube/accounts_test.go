package kube_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	authentication "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/lab"
)

// The way without containers of docs/install.md, word by word: the programs run with the
// kubeconfigs that stand there and the rights of deploy/accounts.yaml, which are enough,
// and no more than is asked for.
func TestWithoutContainers(t *testing.T) {
	for _, mode := range []string{"iptables", "ebpf"} {
		t.Run(mode, func(t *testing.T) {
			m := newMachine(t)
			m.populate()
			objects := manifestFile(t, "accounts.yaml")
			apply(t, m.api, objects, false)
			dir, bin := t.TempDir(), programs.Dir(t)
			at := func(file string) string { return filepath.Join(dir, file) }
			for _, name := range []string{"proxy", "node"} {
				m.must(os.WriteFile(at(name+".conf"), []byte(m.documentedKubeconfig(name, dir)), 0o600))
				m.must(os.WriteFile(at(name+".token"), []byte(m.token("fairlead-"+name)+"\n"), 0o600)) // as kubectl prints it
			}
			ours := []string{"--bpf-root", at("bpf"), "--cgroup-root", m.cgroup.Path}
			// Before the programs are started: they end first, or would mend what is removed.
			cleanup := append([]string{"cleanup", "--cni-conf-dir", at("net.d")}, ours...)
			t.Cleanup(func() { _ = m.node.Do(exec.Command(filepath.Join(bin, "fairlead"), cleanup...).Run) })
			keep(t)(kube.StartProcess(m.node, at("proxy.log"), exec.Command(filepath.Join(bin, "fairlead"),
				append([]string{"proxy", "--kubeconfig", at("proxy.conf"), "--node-name", "node-1", "--mode", mode, "--inspect-socket", at("proxy.sock")}, ours...)...)))
			keep(t)(kube.StartProcess(m.node, at("node.log"), exec.Command(filepath.Join(bin, "fairlead"),
				"node", "--kubeconfig", at("node.conf"), "--node-name", "node-1", "--cni-binary", filepath.Join(bin, "fairlead-cni"), "--inspect-socket", at("node.sock"),
				"--cni-bin-dir", at("bin"), "--cni-conf-dir", at("net.d"), "--ipam-data-dir", at("ipam"), "--host-local-dir", at("host-local"))))
			m.awaitAnswer()
			m.await("fairlead status says that all is well", func() bool {
				return m.node.Do(exec.Command(filepath.Join(bin, "fairlead"), "status", "--socket", at("proxy.sock"), "--node-socket", at("node.sock")).Run) == nil
			})
			for _, file := range []string{"bin/fairlead-cni", "net.d/10-fairlead.conflist"} {
				if !exists(at(file)) {
					t.Errorf("there is no %s", file)
				}
			}
			if got := m.node.RunT(t, "ip", "route", "get", "10.244.2.7"); !strings.Contains(got, "via 192.168.244.12 dev eth0") {
				t.Errorf("the route to a pod of node-2 is %q", got)
			}
			m.checkRights(objects)
			m.checkSecret(at)
		})
	}
}

// checkSecret checks that no log has a token.
func (m *machine) checkSecret(at func(file string) string) {
	m.t.Helper()
	for _, log := range []string{"proxy.log", "node.log"} {
		text, err := os.ReadFile(at(log))
		m.must(err)
		for _, file := range []string{"proxy.token", "node.token"} {
			token, err := os.ReadFile(at(file))
			m.must(err)
			if len(text) == 0 || bytes.Contains(text, bytes.TrimSpace(token)) {
				m.t.Errorf("%s has %d bytes, or what %s has", log, len(text), file)
			}
		}
	}
}

// documentedKubeconfig is what docs/install.md has for a program, with this cluster's
// API server, and dir in place of /etc/fairlead.
func (m *machine) documentedKubeconfig(program, dir string) string {
	m.t.Helper()
	page, err := os.ReadFile("../../docs/install.md")
	m.must(err)
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		m.t.Fatal("docs/install.md has no kubeconfig")
	}
	return strings.NewReplacer(
		"192.0.2.10", lab.Gateway().String(),
		"/etc/kubernetes/pki/ca.crt", filepath.Join(m.dir, "service-account/ca.crt"),
		"/etc/fairlead", dir,
		"proxy", program,
	).Replace(text)
}

// token is one of a ServiceAccount, which lasts for a year.
func (m *machine) token(account string) string {
	m.t.Helper()
	year := int64(8760 * 3600)
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{ExpirationSeconds: &year}}
	token, err := m.api.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(m.t.Context(), account, request, metav1.CreateOptions{})
	m.must(err)
	return token.Status.Token
}
