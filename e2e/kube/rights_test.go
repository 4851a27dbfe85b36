package kube_test

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"

	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// request is what the API server notes of one.
type request struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef *struct {
		Resource string `json:"resource"`
		APIGroup string `json:"apiGroup"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	RequestURI string `json:"requestURI"`
}

// seldom is what is asked for in cases that this test does not make. (Pools are
// TestNodesWithoutAPIServer's, with the same role.)
var seldom = map[string]string{
	"list nodes":          "API servers that do not stream lists",
	"list services":       "likewise",
	"list endpointslices": "likewise",
	"list servicecidrs":   "likewise",
	"list ippools":        "likewise",
	"list ipblocks":       "likewise",
	"create events":       "something is wrong with an object",
	"patch events":        "it is so again",
	"get nodes":           "a block is held by a Node that may be gone",
	"watch ippools":       "a network has a pool",
	"watch ipblocks":      "likewise",
	"create ipblocks":     "likewise",
	"update ipblocks":     "likewise",
	"delete ipblocks":     "likewise",
}

// checkRights compares what the programs asked the API server for with what their
// roles allow: nothing was refused, and nothing is allowed that nobody asks for.
func (m *machine) checkRights(objects []*unstructured.Unstructured) {
	m.t.Helper()
	asked := m.asked()
	for _, o := range objects {
		if o.GetKind() != "ClusterRole" {
			continue
		}
		user := "system:serviceaccount:kube-system:" + o.GetName()
		if asked[user] == nil {
			continue // it did not run
		}
		var role rbac.ClusterRole
		m.must(runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role))
		for _, rule := range role.Rules {
			for _, right := range rights(rule) {
				if !slices.Contains(asked[user], right) && seldom[right] == "" {
					m.t.Errorf("%s may %s, and does not", o.GetName(), right)
				}
			}
		}
	}
}

func rights(rule rbac.PolicyRule) (all []string) {
	for _, resource := range rule.Resources {
		for _, verb := range rule.Verbs {
			all = append(all, verb+" "+resource)
		}
	}
	return all
}

// asked is user → what it asked for.
func (m *machine) asked() map[string][]string {
	m.t.Helper()
	file, err := os.Open(m.audit)
	m.must(err)
	defer func() { _ = file.Close() }()
	asked := map[string][]string{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue // the last one is not yet written to its end
		}
		if r.ObjectRef == nil || !strings.HasPrefix(r.User.Username, "system:serviceaccount:") {
			continue
		}
		if r.ResponseStatus.Code == 403 {
			m.t.Errorf("%s is refused to %s %s", r.User.Username, r.Verb, r.RequestURI)
		}
		asked[r.User.Username] = append(asked[r.User.Username], r.Verb+" "+r.ObjectRef.Resource)
	}
	m.must(lines.Err())
	return asked
}
