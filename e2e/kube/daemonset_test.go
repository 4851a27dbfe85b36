package kube_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/place"
)

// machine is a node with two pods and a container runtime, of a cluster whose
// kubelet and controllers the test is.
//
//	underlay 192.168.244.1  API server
//	node     192.168.244.11 containerd ─┬─ client 10.244.1.2
//	                                    └─ web    10.244.1.3
type machine struct {
	t           *testing.T
	api         *kube.Server
	audit       string // path of the API server's log of requests
	underlay    *netns.NS
	node        *netns.NS
	client, web *netns.NS
	cgroup      *cgroup.Cgroup
	containerd  *place.Containerd
	dir         string // what the kubelet puts into volumes
	execs       int    // commands that were run in containers
}

const image = "localhost/fairlead:test"

var built struct {
	once sync.Once
	path string
	err  error
}

// archive is 'make image' for this machine's platform.
func archive(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		dir := programs.Dir(t)
		platform := "linux-" + runtime.GOARCH
		if built.err = os.Symlink(dir, filepath.Join(dir, platform)); built.err != nil {
			return
		}
		built.path = filepath.Join(dir, "image.tar")
		cmd := exec.CommandContext(t.Context(), "go", "run", "./image", "--programs", dir, "--name", image,
			"--platforms", "linux/"+runtime.GOARCH, "--out", built.path)
		cmd.Dir = deploy
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, node: netns.NewT(t), client: netns.NewT(t), web: netns.NewT(t), cgroup: cgroup.NewT(t), dir: t.TempDir()}
	m.client.Join(m.cgroup)
	m.underlay = underlay(t, m.node)
	m.node.RunT(t, "sh", "-ec", `
		ip route add default via `+lab.Gateway().String()+`
		sysctl -qw net.ipv4.ip_forward=1`)
	m.plug(m.client, "10.244.1.2")
	m.plug(m.web, "10.244.1.3")
	m.startAPIServer()
	return m
}

// underlay makes the network of an API server, and node-1 on it.
func underlay(t *testing.T, node *netns.NS) *netns.NS {
	t.Helper()
	ns := netns.NewT(t)
	ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type veth peer eth0 netns `+node.Path()+`
		ip addr add `+lab.Gateway().String()+`/24 dev eth0
		ip link set eth0 up`)
	node.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip addr add 192.168.244.11/24 dev eth0
		ip link set eth0 up`)
	return ns
}

// plug connects a pod as a CNI plugin would.
func (m *machine) plug(pod *netns.NS, addr string) {
	m.t.Helper()
	dev := "veth" + addr[strings.LastIndex(addr, ".")+1:]
	m.node.RunT(m.t, "sh", "-ec", `
		ip link add `+dev+` type veth peer eth0 netns `+pod.Path()+`
		ip addr add 10.244.1.1/32 dev `+dev+`
		ip link set `+dev+` up
		ip route add `+addr+` dev `+dev)
	pod.RunT(m.t, "sh", "-ec", `
		ip link set lo up
		ip addr add `+addr+`/32 dev eth0
		ip link set eth0 up
		ip route add 10.244.1.1 dev eth0
		ip route add default via 10.244.1.1`)
}

func (m *machine) startAPIServer() {
	m.t.Helper()
	dir := m.t.TempDir()
	m.audit = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "policy.yaml")
	m.must(os.WriteFile(policy, []byte(`{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}`), 0o600))
	var err error
	m.api, err = kube.Start(m.t.Context(), m.underlay, lab.Gateway(), dir, "--audit-policy-file", policy, "--audit-log-path", m.audit)
	m.must(err)
	m.t.Cleanup(func() {
		if err := m.api.Stop(); err != nil {
			m.t.Error(err)
		}
	})
	awaitNamespace(m.t, m.api, metav1.NamespaceSystem)
	m.mount("ca.crt", dir, "service-account/ca.crt")
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// mount copies a file into what containers see.
func (m *machine) mount(file, from, to string) {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(from, file))
	m.must(err)
	m.write(to, string(text))
}

func (m *machine) write(file, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, file)
	m.must(os.MkdirAll(filepath.Dir(path), 0o755))
	m.must(os.WriteFile(path, []byte(text), 0o644))
}

// populate makes the node, and the Service web, whose endpoint is the pod.
func (m *machine) populate() {
	m.t.Helper()
	c := cluster{t: m.t, api: m.api}
	c.createNode(node("node-1", "192.168.244.11", "10.244.1.0/24"))
	c.createNode(node("node-2", "192.168.244.12", "10.244.2.0/24"))
	ctx := m.t.Context()
	service := lab.NewService("web", webIPv4)
	service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: "echo", Port: 81})
	_, err := m.api.Client.CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{})
	m.must(err)
	port := func(name string, number int32) discovery.EndpointPort {
		return discovery.EndpointPort{Name: &name, Port: &number}
	}
	_, err = m.api.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discovery.LabelServiceName: "web"}},
		AddressType: discovery.AddressTypeIPv4,
		Endpoints:   []discovery.Endpoint{{Addresses: []string{"10.244.1.3"}}},
		Ports:       []discovery.EndpointPort{port("tcp", 8080), port("echo", 8081)},
	}, metav1.CreateOptions{})
	m.must(err)
	m.serve(netip.MustParseAddrPort("10.244.1.3:8080"))
}

// serve answers from the pod web by the address of who asks.
func (m *machine) serve(at netip.AddrPort) {
	m.t.Helper()
	m.accept(at, func(conn net.Conn) {
		_, _ = io.WriteString(conn, conn.RemoteAddr().(*net.TCPAddr).IP.String())
		_ = conn.Close()
	})
}

// accept has connections to the pod web answered.
func (m *machine) accept(at netip.AddrPort, answer func(net.Conn)) {
	m.t.Helper()
	var l net.Listener
	m.must(m.web.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	}))
	m.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			go answer(conn)
		}
	}()
}

// ask connects from the pod client to the Service, and returns what is answered.
func (m *machine) ask() (string, error) {
	var conn net.Conn
	err := m.client.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", webIPv4+":80", time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	text, err := io.ReadAll(conn)
	return string(text), err
}

// awaitAnswer asks until the endpoint answers, and it knows who asks.
func (m *machine) awaitAnswer() {
	m.t.Helper()
	var got string
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got, err = m.ask(); err == nil && got == "10.244.1.2" {
			return
		}
	}
	m.t.Fatalf("the Service answers %q, %v, want the client's address 10.244.1.2", got, err)
}

// asKubeadm writes the ConfigMap of kube-proxy as kubeadm does.
func (m *machine) asKubeadm() {
	m.t.Helper()
	m.mount("kubeadm.conf", "../../cmd/fairlead/testdata/kube-proxy", "config/config.conf")
	m.write("config/kubeconfig.conf", `apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: https://`+lab.Gateway().String()+`:6443
  name: default
contexts:
- context: {cluster: default, namespace: default, user: default}
  name: default
current-context: default
users:
- name: default
  user: {tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}
`)
}

// run runs the container of a DaemonSet's pod as the kubelet would have containerd
// run it, with nothing that the pod does not ask for, until the returned function
// kills it.
func (m *machine) run(ds *appsv1.DaemonSet) (kill func()) {
	m.t.Helper()
	pod, ctx := ds.Spec.Template.Spec, m.t.Context()
	token, err := m.api.Client.CoreV1().ServiceAccounts(ds.Namespace).CreateToken(ctx, pod.ServiceAccountName, &authentication.TokenRequest{}, metav1.CreateOptions{})
	m.must(err)
	m.write("service-account-"+ds.Name+"/token", token.Status.Token)
	m.mount("service-account/ca.crt", m.dir, "service-account-"+ds.Name+"/ca.crt")
	if m.containerd == nil {
		m.containerd = place.NewContainerd(m.t, m.node, "touch /etc/hosts /etc/resolv.conf\nmount -t bpf none /sys/fs/bpf")
		m.containerd.Import(m.t, archive(m.t))
	}
	container := pod.Containers[0]
	args := []string{"ctr", "run", "--rm", "--snapshotter=native", "--cgroup=" + m.containerd.Cgroup + "/" + ds.Name, "--net-host"}
	args = append(args, securityArgs(m.t, container.SecurityContext)...)
	args = append(args, m.mountArgs(pod, container, "service-account-"+ds.Name)...)
	env := strings.NewReplacer("$(NODE_NAME)", "node-1")
	for _, e := range container.Env {
		if e.Value == "" { // spec.nodeName
			e.Value = "node-1"
		}
		args = append(args, "--env="+e.Name+"="+e.Value)
	}
	args = append(args, image, ds.Name, "/usr/bin/fairlead") // ctr passes over the entrypoint of the image
	for _, a := range container.Args {
		args = append(args, env.Replace(a))
	}
	wait := m.containerd.Start(m.t, args...)
	return func() {
		m.t.Helper()
		m.containerd.Run(m.t, "ctr", "task", "kill", "--signal=SIGKILL", ds.Name)
		_ = wait() // the status of what was killed
	}
}

// usualCapabilities are what containerd gives to whom nothing is said of.
var usualCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

func securityArgs(t *testing.T, s *corev1.SecurityContext) []string {
	t.Helper()
	args := []string{"--seccomp"}
	if s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || *s.AllowPrivilegeEscalation || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
		t.Fatalf("security context %v: it allows more than this test", s)
	}
	if *s.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	for _, c := range usualCapabilities {
		if !slices.Contains(s.Capabilities.Add, corev1.Capability(c)) { // ctr drops last
			args = append(args, "--cap-drop=CAP_"+c)
		}
	}
	for _, c := range s.Capabilities.Add {
		args = append(args, "--cap-add=CAP_"+string(c))
	}
	return args
}

// mountArgs makes the volumes of a pod and mounts them.
func (m *machine) mountArgs(pod corev1.PodSpec, container corev1.Container, account string) []string {
	m.t.Helper()
	bind := func(from, to, options string) string {
		return "--mount=type=bind,src=" + from + ",dst=" + to + ",options=" + options
	}
	args := []string{bind(filepath.Join(m.dir, account), "/var/run/secrets/kubernetes.io/serviceaccount", "rbind:ro")}
	volumes := map[string]string{}
	for _, v := range pod.Volumes {
		switch {
		case v.ConfigMap != nil:
			volumes[v.Name] = filepath.Join(m.dir, "config")
			continue
		case v.HostPath.Path == "/sys/fs/cgroup": // of the node
			volumes[v.Name] = m.cgroup.Path
			continue
		case *v.HostPath.Type == corev1.HostPathFileOrCreate:
			m.containerd.Run(m.t, "touch", v.HostPath.Path)
		case *v.HostPath.Type == corev1.HostPathDirectoryOrCreate:
			m.containerd.Run(m.t, "mkdir", "-p", v.HostPath.Path)
		}
		volumes[v.Name] = v.HostPath.Path
	}
	for _, mount := range container.VolumeMounts {
		options := "rbind:rw"
		if mount.ReadOnly {
			options = "rbind:ro"
		}
		if p := mount.MountPropagation; p != nil && *p == corev1.MountPropagationHostToContainer {
			options += ":rslave"
		}
		args = append(args, bind(volumes[mount.Name], mount.MountPath, options))
	}
	return args
}

// The container of the DaemonSet's pod, with the rights that the manifest gives to
// it and no others, programs Services, in either mode; they go on while no container
// runs, and the next one takes over. The node's programs do what they are there for
// too, and what the API server was asked for is what they may.
func TestDaemonSet(t *testing.T) {
	for mode, set := range map[string]string{"iptables": "proxy.mode=iptables", "ebpf": "proxy.mode=ebpf"} {
		t.Run(mode, func(t *testing.T) {
			m := newMachine(t)
			m.populate()
			m.asKubeadm()
			objects := rendered(t, set)
			apply(t, m.api, objects, false)
			proxy := daemonSet(t, objects, "fairlead-proxy")
			kill := m.run(proxy)
			m.awaitAnswer()
			kill()
			if got, err := m.ask(); got != "10.244.1.2" {
				t.Errorf("without the container the Service answers %q, %v", got, err)
			}
			kill = m.run(proxy)
			m.awaitReady(container(proxy).ReadinessProbe)
			m.awaitAnswer()
			if mode == "ebpf" {
				m.checkUnsure()
			}
			kill()
			if mode == "iptables" {
				m.checkNode(daemonSet(t, objects, "fairlead-node"))
			} else {
				m.checkChange(rendered(t, "proxy.mode=iptables"))
			}
			m.checkRights(objects)
		})
	}
}

// checkUnsure looks whether trace says what it cannot know in a container, and both
// answers.
func (m *machine) checkUnsure() {
	m.t.Helper()
	said, err := m.inContainer([]string{"fairlead", "trace", "--from", lab.Gateway().String(), "--to", webIPv4 + ":80"})
	for _, want := range []string{"not all processes of the node are to be seen", "by its packets", "by the sender's socket"} {
		if err != nil || !strings.Contains(said, want) {
			m.t.Errorf("trace does not say %q: %v\n%s", want, err, said)
		}
	}
}

// checkChange looks whether nothing of mode ebpf is left when another mode is chosen.
func (m *machine) checkChange(objects []*unstructured.Unstructured) {
	m.t.Helper()
	const pins = "find /sys/fs/bpf -name 'fairlead*'"
	if got := m.containerd.Run(m.t, "sh", "-c", pins+" 2>/dev/null || true"); got == "" {
		m.t.Error("mode ebpf has no pins where they are looked for")
	}
	apply(m.t, m.api, objects, false)
	defer m.run(daemonSet(m.t, objects, "fairlead-proxy"))()
	m.await("nothing left of mode ebpf", func() bool { return m.containerd.Run(m.t, "sh", "-c", pins+" 2>/dev/null || true") == "" })
	m.awaitAnswer()
}

func container(ds *appsv1.DaemonSet) *corev1.Container { return &ds.Spec.Template.Spec.Containers[0] }

// awaitReady probes until it is answered that all is well.
func (m *machine) awaitReady(probe *corev1.Probe) {
	m.t.Helper()
	get := probe.HTTPGet
	last := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var conn net.Conn
		if err := m.node.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", net.JoinHostPort(get.Host, get.Port.String()), time.Second)
			return err
		}); err != nil {
			last = err.Error()
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", get.Path)
		text, _ := io.ReadAll(conn)
		_ = conn.Close()
		if last = string(text); strings.Contains(last, " 200 OK") {
			return
		}
	}
	m.t.Fatalf("the probe of %s: %s", get.Path, last)
}

// checkNode looks whether pods can be made where 'fairlead node' is.
func (m *machine) checkNode(ds *appsv1.DaemonSet) {
	m.t.Helper()
	kill := m.run(ds)
	defer kill()
	m.awaitReady(container(ds).ReadinessProbe)
	m.containerd.Run(m.t, "test", "-s", "/etc/cni/net.d/10-fairlead.conflist")
	if got := m.containerd.Run(m.t, "env", "CNI_COMMAND=VERSION", "/opt/cni/bin/fairlead-cni"); !strings.Contains(got, "1.1.0") {
		m.t.Errorf("the plugin that is installed says %q", got)
	}
	if got := m.node.RunT(m.t, "ip", "route", "get", "10.244.2.7"); !strings.Contains(got, "via 192.168.244.12 dev eth0") {
		m.t.Errorf("the route to a pod of node-2 is %q", got)
	}
}
