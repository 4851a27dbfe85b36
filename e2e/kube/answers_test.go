package kube_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/kube"
)

// An API server answers, but not as it should. What was known before is served, the log
// says that it is not followed where it is not, and once it answers well it is followed
// again.
func TestAPIServerAnswersBadly(t *testing.T) {
	c := newClusterBehind(t, (*kube.Relay).Shut)
	front, err := c.api.NewFront(relayPort)
	c.must(err)
	t.Cleanup(front.Close)
	for _, vip := range vips() {
		c.until(vip, answeredBy(c.pods[0]))
	}
	serving := c.pods
	for i, tt := range []struct {
		name    string
		behave  kube.Behaviour
		follows bool // all the same
	}{
		{"500", status(http.StatusInternalServerError), false},
		{"429", status(http.StatusTooManyRequests), false},
		{"HTML", garbage, false},
		{"late", late, true},
		{"stale lists", c.stale(), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := c.log()
			front.Behave(tt.behave)
			pod := c.pods[i%len(c.pods)]
			c.serve("web", pod)
			if !tt.follows {
				c.untilLoggedAfter(log, "the API server is not followed")
				c.checkSpread(serving...)
				front.Behave(kube.Pass)
				c.untilLoggedAfter(log, "followed again")
			}
			c.untilOnly(pod)
			front.Behave(kube.Pass)
			serving = c.pods[i%len(c.pods) : i%len(c.pods)+1]
		})
	}
}

// untilLoggedAfter is untilLogged for what was not in the log before.
func (c *cluster) untilLoggedAfter(before, text string) {
	c.t.Helper()
	for !strings.Contains(c.log()[len(before):], text) {
		if c.t.Context().Err() != nil {
			c.t.Fatalf("the log does not say %q:\n%s", text, c.log()[len(before):])
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// status refuses every request, as Kubernetes does that.
func status(code int) kube.Behaviour {
	text, _ := json.Marshal(metav1.Status{ // which can always be encoded
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Message: "not today",
	})
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", strconv.Itoa(1))
		}
		w.WriteHeader(code)
		_, _ = w.Write(text)
	}
}

// garbage is what a proxy on the way answers.
func garbage(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, "<html>This network asks you to log in.</html>")
}

// late answers every request five seconds later.
func late(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	select {
	case <-time.After(5 * time.Second):
		pass.ServeHTTP(w, r)
	case <-r.Context().Done():
	}
}

// stale is an API server that lags behind: it has forgotten what was last, lists
// EndpointSlices as they are now, and tells of what came since.
func (c *cluster) stale() kube.Behaviour {
	c.t.Helper()
	list, err := c.api.Client.DiscoveryV1().RESTClient().Get().AbsPath(slicesPath).DoRaw(c.t.Context())
	c.must(err)
	var head struct{ Metadata metav1.ListMeta }
	c.must(json.Unmarshal(list, &head))
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		q := r.URL.Query()
		switch {
		case r.URL.Path != slicesPath || q.Get("resourceVersion") == head.Metadata.ResourceVersion:
			pass.ServeHTTP(w, r)
		case q.Get("sendInitialEvents") != "":
			status(http.StatusUnprocessableEntity)(w, r, pass)
		case q.Get("watch") != "":
			status(http.StatusGone)(w, r, pass)
		default:
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(list)
		}
	}
}

const slicesPath = "/apis/discovery.k8s.io/v1/endpointslices"
