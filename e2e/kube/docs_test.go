package kube_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// notRun are the commands of the docs that TestDocsRun does not run, each as it
// begins, and why.
var notRun = map[string]string{
	"fairlead proxy --config":               "runs until it is ended: TestDaemonSet",
	"fairlead proxy --kubeconfig":           "likewise: TestWithoutContainers",
	"fairlead proxy --manifests":            "likewise: the labs of e2e",
	"fairlead node":                         "likewise: TestDaemonSet, TestNodeFollowsAPIServer, and e2e for the shim",
	"bin/fairlead-lab":                      "makes labs: tests of e2e and e2e/lab",
	"install bin/fairlead /usr/local/bin/":  "writes to the machine",
	"install -d -m 0700 /etc/fairlead":      "likewise",
	"kubectl -n kube-system rollout status": "waits for the controller of DaemonSets, which does not run here",
	"kubectl -n kube-system exec -it":       "wants a terminal: the same without one is run",
}

// Every command of the docs does what it is there for: on a node where Fairlead runs
// as its DaemonSets have it, beside a real API server.
func TestDocsRun(t *testing.T) {
	m := newMachine(t)
	m.populate()
	m.asKubeadm()
	objects := manifestFile(t, "fairlead.yaml")
	apply(t, m.api, objects, false)
	for _, name := range []string{"fairlead-proxy", "fairlead-node"} {
		ds := daemonSet(t, objects, name)
		defer m.run(ds)()
		m.awaitReady(container(ds).ReadinessProbe)
	}
	m.kubeProxyDaemonSet()
	m.containerd.Run(t, "sh", "-c", `mkdir -p /var/lib/cni/networks/pods; printf 'one\r\neth0' >/var/lib/cni/networks/pods/10.244.1.9`)
	passed := map[string]bool{}
	pages, err := filepath.Glob("../../docs/*.md")
	m.must(err)
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		m.must(err)
		for line := range strings.Lines(string(text)) {
			words := m.command(line)
			if words == nil {
				continue
			}
			line = strings.Join(words, " ")
			if i := slices.IndexFunc(keys(notRun), func(begin string) bool { return strings.HasPrefix(line, begin) }); i >= 0 {
				passed[keys(notRun)[i]] = true
				continue
			}
			if said, err := m.docCommand(words); err != nil {
				t.Errorf("%s: %s: %v\n%s", filepath.Base(page), line, err, said)
			}
		}
	}
	for begin := range notRun {
		if !passed[begin] {
			t.Errorf("no page has a command that begins with %q: it need not be passed over", begin)
		}
	}
}

func keys(of map[string]string) []string {
	var all []string
	for key := range of {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}

// command is the words of a line of a block of commands; nil if it is none.
func (m *machine) command(line string) []string {
	m.t.Helper()
	text, block := strings.CutPrefix(line, "    ")
	text = strings.TrimSpace(text)
	first, _, _ := strings.Cut(text, " ")
	if !block || !slices.Contains([]string{"fairlead", "bin/fairlead-lab", "kubectl", "helm", "ctr", "make", "install"}, first) {
		return nil
	}
	for _, end := range []string{" #", " | ", " > "} {
		text, _, _ = strings.Cut(text, end)
	}
	out, err := exec.CommandContext(m.t.Context(), "sh", "-c", `printf '%s\0' `+text).Output()
	m.must(err)
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// docCommand runs a command, or has the API server do what it is asked for by it.
func (m *machine) docCommand(words []string) (said string, err error) {
	switch words[0] {
	case "fairlead":
		return m.inContainer(words)
	case "make":
		cmd := exec.CommandContext(m.t.Context(), "make", append([]string{"-n", "-C", "../.."}, words[1:]...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	case "ctr":
		words = slices.Concat(words[:len(words)-1], []string{"--snapshotter=native", archive(m.t)})
		return m.containerd.Run(m.t, words...), nil
	case "helm":
		var sets []string
		for i, w := range words {
			if w == "--set" {
				sets = append(sets, words[i+1])
			}
		}
		apply(m.t, m.api, rendered(m.t, strings.Join(sets, ",")), true)
		return "", nil
	}
	return m.kubectl(words[1:])
}

// inContainer runs a command where 'kubectl exec' does.
func (m *machine) inContainer(words []string) (string, error) {
	m.t.Helper()
	pod := "fairlead-proxy"
	if words[1] == "ipam" {
		pod = "fairlead-node" // has the stores of addresses
	}
	m.execs++
	args := slices.Concat([]string{"ctr", "task", "exec", fmt.Sprintf("--exec-id=docs-%d", m.execs), pod, "/usr/bin/fairlead"}, words[1:])
	if slices.Contains(words, "--watch") { // beside the container, to be interrupted
		args = slices.Concat([]string{"timeout", "--preserve-status", "--signal=INT", "3", filepath.Join(programs.Dir(m.t), "fairlead")}, words[1:])
	}
	line := strings.Join(args, " ")
	if words[1] == "doctor" { // it says what is wrong with this machine
		line += " || test $? = 1"
	}
	said := m.containerd.Run(m.t, "sh", "-c", line+" || echo FAILED $?")
	if strings.Contains(said, "FAILED") || said == "" {
		return said, errors.New("it failed, or said nothing")
	}
	return said, nil
}

// kubectl does what some of its commands ask the API server for.
func (m *machine) kubectl(words []string) (string, error) {
	m.t.Helper()
	ctx, sets := m.t.Context(), m.api.Client.AppsV1().DaemonSets(metav1.NamespaceSystem)
	if words[0] == "-n" {
		words = words[2:]
	}
	flag := func(name string) string { return words[slices.Index(words, name)+1] }
	switch words[0] {
	case "apply":
		file := strings.TrimPrefix(flag("-f"), "deploy/")
		if !strings.HasSuffix(file, "/") {
			apply(m.t, m.api, manifestFile(m.t, file), true)
			return "", nil
		}
		files, err := filepath.Glob(filepath.Join(deploy, file, "*.yaml"))
		for _, f := range files {
			text, err := os.ReadFile(f)
			m.must(err)
			apply(m.t, m.api, manifest(m.t, text), true)
		}
		return "", err
	case "patch":
		kinds := map[string]types.PatchType{"merge": types.MergePatchType, "json": types.JSONPatchType}
		_, err := sets.Patch(ctx, words[2], kinds[flag("--type")], []byte(flag("-p")), metav1.PatchOptions{})
		return "", err
	case "create":
		request := &authenticationv1.TokenRequest{}
		_, err := m.api.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, words[2], request, metav1.CreateOptions{})
		return "", err
	case "delete":
		return "", sets.Delete(ctx, words[2], metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	case "exec":
		name := strings.TrimPrefix(words[1], "daemonset/")
		if _, err := sets.Get(ctx, name, metav1.GetOptions{}); err != nil {
			return "", err
		}
		return m.inContainer(words[slices.Index(words, "--")+1:])
	}
	return "", errors.New("nobody knows how to run it here")
}

// kubeProxyDaemonSet is there as kubeadm makes it, as far as the docs have to do with it.
func (m *machine) kubeProxyDaemonSet() {
	m.t.Helper()
	labels := map[string]string{"k8s-app": "kube-proxy"}
	_, err := m.api.Client.AppsV1().DaemonSets(metav1.NamespaceSystem).Create(m.t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{corev1.LabelOSStable: "linux"},
					Containers:   []corev1.Container{{Name: "kube-proxy", Image: "registry.k8s.io/kube-proxy:v1.37.2"}},
				},
			},
		},
	}, metav1.CreateOptions{})
	m.must(err)
}
