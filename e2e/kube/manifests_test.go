package kube_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/fairlead/fairlead/e2e/kube"
)

const deploy = "../../deploy"

// manifest is a manifest's objects.
func manifest(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := documents.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if o.Object != nil {
			objects = append(objects, o)
		}
	}
}

func manifestFile(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return manifest(t, text)
}

// rendered is the chart with some values.
func rendered(t *testing.T, set string) []*unstructured.Unstructured {
	t.Helper()
	text, err := render(t, set)
	if err != nil {
		t.Fatal(err)
	}
	return manifest(t, text)
}

func render(t *testing.T, set string) ([]byte, error) {
	cmd := exec.CommandContext(t.Context(), "go", "run", "./manifests", "--set", set)
	cmd.Dir = deploy
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		err = errors.New(stderr.String())
	}
	return text, err
}

// daemonSet is a manifest's DaemonSet of that name.
func daemonSet(t *testing.T, objects []*unstructured.Unstructured, name string) *appsv1.DaemonSet {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != "DaemonSet" || o.GetName() != name {
			continue
		}
		var ds appsv1.DaemonSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &ds); err != nil {
			t.Fatal(err)
		}
		return &ds
	}
	t.Fatalf("the manifest has no DaemonSet %s", name)
	return nil
}

// apply applies objects on the server's side, for real or to see whether it could.
func apply(t *testing.T, api *kube.Server, objects []*unstructured.Unstructured, dryRun bool) {
	t.Helper()
	groups, err := restmapper.GetAPIGroupResources(api.Client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client, err := dynamic.NewForConfig(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		mapping, err := mapper.RESTMapping(o.GroupVersionKind().GroupKind(), o.GroupVersionKind().Version)
		if err != nil {
			t.Fatal(err)
		}
		resource := dynamic.ResourceInterface(client.Resource(mapping.Resource))
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			resource = client.Resource(mapping.Resource).Namespace(o.GetNamespace())
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		options := metav1.PatchOptions{FieldManager: "test", FieldValidation: metav1.FieldValidationStrict}
		if dryRun {
			options.DryRun = []string{metav1.DryRunAll}
		}
		if _, err := resource.Patch(t.Context(), o.GetName(), types.ApplyPatchType, text, options); err != nil {
			t.Errorf("apply %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// A real API server takes what deploy has, and the chart with all that can be set
// there, to the last field, and makes pods of it.
func TestManifests(t *testing.T) {
	api, _ := startServer(t)
	awaitNamespace(t, api, metav1.NamespaceSystem)
	all := map[string][]*unstructured.Unstructured{
		"accounts.yaml":   manifestFile(t, "accounts.yaml"),
		"proxy-only.yaml": manifestFile(t, "proxy-only.yaml"),
		"cni-only.yaml":   manifestFile(t, "cni-only.yaml"),
		"fairlead.yaml":   manifestFile(t, "fairlead.yaml"),
		"ebpf":            rendered(t, "proxy.mode=ebpf,proxy.extraArgs={--map-size=flows=1000}"),
		"odd": rendered(t, `kubeProxyConfigMap=1e3,node.cniBinDir=/opt/{a\, b: c,node.cniConfDir=/etc/#x: ",priorityClassName=,nodeSelector=null,tolerations=null,`+
			"proxy.resources=null,apiServer.host=fd00::1"),
		"elsewhere": rendered(t, "kubeProxyConfigMap=,apiServer.host=192.0.2.1,imagePullSecrets[0].name=mine,maxUnavailable=10%,"+
			"node.extraArgs={--vxlan-port=8472,--macvlan-shim=eth0}"),
	}
	for name, objects := range all {
		t.Run(name, func(t *testing.T) {
			apply(t, api, objects, true)
			for _, o := range objects {
				if o.GetKind() == "DaemonSet" {
					checkPod(t, api, daemonSet(t, objects, o.GetName()))
				}
			}
		})
	}
	apply(t, api, all["fairlead.yaml"], false)
}

// checkPod has the API server take a pod as the DaemonSet's controller would make
// it.
func checkPod(t *testing.T, api *kube.Server, ds *appsv1.DaemonSet) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: ds.Spec.Template.Spec.ServiceAccountName}}
	_, _ = api.Client.CoreV1().ServiceAccounts(ds.Namespace).Create(t.Context(), account, metav1.CreateOptions{}) // it may be there
	pod := &corev1.Pod{ObjectMeta: ds.Spec.Template.ObjectMeta, Spec: ds.Spec.Template.Spec}
	pod.Name = ds.Name
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if _, err := api.Client.CoreV1().Pods(ds.Namespace).Create(t.Context(), pod, options); err != nil {
		t.Errorf("a pod of %s: %v", ds.Name, err)
	}
	for _, c := range pod.Spec.Containers {
		if c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
			t.Errorf("%s is privileged", c.Name)
		}
	}
}

func awaitNamespace(t *testing.T, api *kube.Server, name string) {
	t.Helper()
	for {
		_, err := api.Client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if err == nil {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(err)
		}
	}
}

// Values that make no sense are refused, with their names.
func TestValuesRefused(t *testing.T) {
	for set, want := range map[string]string{
		"proxy.mode=ipvs":                        "proxy/mode",
		"kubeProxyConfigMap=":                    "apiServer",
		"kubeProxyConfigMap=null":                "kubeProxyConfigMap",
		"apiServer.host=https://a":               "apiServer/host",
		"apiServer.host=192.0.2.1:6443":          "apiServer/host",
		"apiServer=null":                         "apiServer",
		"image=null":                             "image",
		"node.cniBinDir=opt":                     "node/cniBinDir",
		"maxUnavailable=0":                       "maxUnavailable",
		"proxy.enabled=false,node.enabled=false": "proxy/enabled",
		"proxy.colour=green":                     "colour",
		"node.extraArgs={vxlan-port=99}":         "extraArgs",
	} {
		if _, err := render(t, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: %v, want an error that says %s", set, err, want)
		}
	}
}
