package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// contact is what is known of the API server as the source of one kind.
type contact struct {
	listed bool      // all objects have arrived once
	last   time.Time // when the API server was last heard of
	err    error     // of the last request; nil: it was answered
}

// silence is for how long there may be nothing to hear. A reflector opens its
// watch anew after ten minutes at the latest, so an API server that works has
// answered then. (A connection that is dead is found out long before: HTTP/2
// pings it when it has been idle for 30 s.)
const silence = 11 * time.Minute

// StaleError says that a source no longer follows the API server.
type StaleError struct {
	Kind string    // of the objects that are not followed, as in "Service"
	Last time.Time // when the API server was last heard of; zero: not yet
	Err  error     // why; nil: it does not answer at all
}

func (e *StaleError) Error() string {
	why := "nothing is heard of the API server"
	if e.Err != nil {
		why = e.Err.Error()
	}
	if e.Last.IsZero() {
		return fmt.Sprintf("watch %s objects: %s", e.Kind, why)
	}
	return fmt.Sprintf("watch %s objects: %s; last heard at %s", e.Kind, why, e.Last.Format(time.RFC3339))
}

// Unwrap is for errors.Is and errors.As.
func (e *StaleError) Unwrap() error { return e.Err }

// Stale returns a *StaleError if objects may have changed without the source
// having heard of it, because the API server cannot be reached or refuses; and
// nil as long as it follows.
func (k *Kube) Stale(now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.feeds {
		c := k.contacts[f.kind]
		if !c.listed && !k.told.IsZero() {
			return &StaleError{Kind: f.kind, Last: c.last, Err: k.fromMemory(c.err)}
		}
		if c.err != nil || now.Sub(cmp.Or(c.last, k.began)) > silence {
			return &StaleError{Kind: f.kind, Last: c.last, Err: c.err}
		}
	}
	return nil
}

// Heard is when the API server was last heard of, about the kind of which that is the
// longest ago: there, a change since would not be known. Zero: not of all yet.
func (k *Kube) Heard() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	var oldest time.Time
	for i, f := range k.feeds {
		if last := k.contacts[f.kind].last; i == 0 || last.Before(oldest) {
			oldest = last
		}
	}
	return oldest
}

// fromMemory is why objects that were never listed are told.
func (k *Kube) fromMemory(err error) error {
	told := fmt.Errorf("what counts is what was known at %s", k.memory.saved.Format(time.RFC3339))
	if err != nil {
		told = fmt.Errorf("%w; %w", told, err)
	}
	return told
}

// heard notes a word of the API server about a kind.
func (k *Kube) heard(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.contacts[kind]
	c.last, c.err = time.Now(), nil
}

// failed notes that a request about a kind was not answered, or refused.
func (k *Kube) failed(kind string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.contacts[kind].err = err
}

// overheard is a configuration of clients whose requests about a kind are noted
// as they are sent. Above the transport this cannot be seen: a client tries
// again by itself, and reports a watch whose connection breaks before it is
// answered as one that is open and has ended.
func (k *Kube) overheard(kind string, config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			response, err := next.RoundTrip(request)
			switch {
			case err != nil:
				k.failed(kind, err)
			case response.StatusCode >= 300: // what it says is in the body: see heeded
			case isAPI(response):
				k.heard(kind)
			default:
				k.failed(kind, fmt.Errorf("%s answers with %q, which is none of an API server", request.URL.Host, response.Header.Get("Content-Type")))
			}
			return response, err
		})
	})
	return c
}

// isAPI says whether it is an API server that answers, not something on the way to it.
func isAPI(response *http.Response) bool {
	return strings.HasPrefix(response.Header.Get("Content-Type"), "application/") // JSON, or Kubernetes' own
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// refused notes that no objects of a kind are to be had. Those that were stay.
func (k *Kube) refused(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*k.contacts[kind] = contact{listed: true, last: time.Now()}
	k.awake()
}

// heeded is a ListWatch of which it is noted what the API server refuses.
func (k *Kube) heeded(f feed, from *cache.ListWatch) *cache.ListWatch {
	heed := func(err error) {
		switch {
		case f.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)):
			k.refused(f.kind)
		case isStatus(err):
			k.failed(f.kind, err)
		}
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := from.ListWithContext(ctx, o)
			heed(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := from.WatchWithContext(ctx, o)
			heed(err)
			return w, err
		},
	}
}

// isStatus says whether an error is the word of an API server.
func isStatus(err error) bool {
	status := apierrors.APIStatus(nil)
	return errors.As(err, &status)
}
