// Package kube has pools and blocks in the Kubernetes API, as the objects IPPool
// and IPBlock (deploy/chart/crds): it watches them for pool.View and writes blocks as
// pool.API.
//
// It decides nothing. What it knows stays as long as the API server is away.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/ipam/pool"
)

// Group and Version are those of IPPool and IPBlock.
const (
	Group   = "fairlead.dev"
	Version = "v1alpha1"
)

var (
	poolResource  = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "ippools"}
	blockResource = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "ipblocks"}
	nodeResource  = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

// Source watches pools and blocks, and writes blocks. It is safe for concurrent
// use.
type Source struct {
	client  dynamic.Interface
	stop    context.CancelFunc
	running sync.WaitGroup
	changed chan struct{}

	mu     sync.Mutex // guards what follows
	pools  kind[pool.Pool]
	blocks kind[pool.Block]
}

// kind is what is known of the objects of one kind.
type kind[T any] struct {
	listed   bool
	err      error // of the last request; nil: it was answered
	good     map[string]T
	problems map[string]string // name of an object → what is wrong with it
	uids     map[string]string // name of an object, good or not → its UID
}

// New starts to watch the API server of a configuration, which need not be there
// yet.
func New(config *rest.Config) (*Source, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	s := &Source{client: client, stop: stop, changed: make(chan struct{}, 1)}
	run(ctx, s, poolResource, &s.pools, parsePool)
	run(ctx, s, blockResource, &s.blocks, parseBlock)
	return s, nil
}

// Close ends the source.
func (s *Source) Close() {
	s.stop()
	s.running.Wait()
}

// Changed tells that View may have something new.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Objects is what is known.
type Objects struct {
	Pools    []pool.Pool
	Blocks   map[string]pool.Block // by name
	Problems []pool.Problem        // with objects, which are left out
	Synced   bool                  // all objects have arrived once
	Err      error                 // why they are not followed; nil: they are
}

// Objects returns what is known.
func (s *Source) Objects() Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := Objects{
		Pools:  slices.Collect(maps.Values(s.pools.good)),
		Blocks: maps.Clone(s.blocks.good),
		Synced: s.pools.listed && s.blocks.listed,
		Err:    errors.Join(s.pools.err, s.blocks.err),
	}
	for _, name := range slices.Sorted(maps.Keys(s.pools.problems)) {
		o.Problems = append(o.Problems, pool.Problem{Kind: pool.KindPool, Name: name, Text: s.pools.problems[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(s.blocks.problems)) {
		o.Problems = append(o.Problems, pool.Problem{Kind: pool.KindBlock, Name: name, Text: s.blocks.problems[name]})
	}
	return o
}

// UID is that of an object of a kind, "" if it is not known.
func (s *Source) UID(kind, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == pool.KindPool {
		return s.pools.uids[name]
	}
	return s.blocks.uids[name]
}

func (s *Source) tell() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// run keeps a kind as the API server has it. One reflector for all blocks means
// that they are shown in the order of their versions, which Lessor relies on.
func run[T any](ctx context.Context, s *Source, resource schema.GroupVersionResource, k *kind[T], parse func(*unstructured.Unstructured) (T, error)) {
	client := s.client.Resource(resource)
	heard := func(err error) {
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("the API server has no %s.%s: apply deploy/chart/crds", resource.Resource, resource.Group)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if (k.err == nil) != (err == nil) {
			s.tell()
		}
		k.err = err
	}
	from := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := client.List(ctx, o)
			heard(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := client.Watch(ctx, o)
			heard(err)
			return w, err
		},
	}
	quiet := logr.Discard()
	r := cache.NewReflectorWithOptions(from, &unstructured.Unstructured{}, &store[T]{s, k, parse}, cache.ReflectorOptions{
		Logger: &quiet, Name: resource.Resource, TypeDescription: resource.Resource,
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 8, Cap: 10 * time.Second},
	})
	s.running.Go(func() { r.RunWithContext(ctx) })
}

// store is where a reflector puts objects. It implements cache.ReflectorStore,
// none of whose calls can fail here.
type store[T any] struct {
	source *Source
	kind   *kind[T]
	parse  func(*unstructured.Unstructured) (T, error)
}

// Add implements cache.ReflectorStore.
func (s *store[T]) Add(obj any) error {
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	s.put(obj)
	s.source.tell()
	return nil
}

// Update implements cache.ReflectorStore.
func (s *store[T]) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *store[T]) Delete(obj any) error {
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	s.drop(obj.(metav1.Object).GetName())
	s.source.tell()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store[T]) Replace(objs []any, _ string) error {
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	s.kind.clear()
	s.kind.listed = true
	for _, obj := range objs {
		s.put(obj)
	}
	s.source.tell()
	return nil
}

// Resync implements cache.ReflectorStore; the reflector has no resync period.
func (*store[T]) Resync() error { return nil }

// put is called with the source's lock held.
func (s *store[T]) put(obj any) {
	o := obj.(*unstructured.Unstructured)
	s.drop(o.GetName())
	s.kind.uids[o.GetName()] = string(o.GetUID())
	value, err := s.parse(o)
	if err != nil {
		s.kind.problems[o.GetName()] = err.Error()
		return
	}
	s.kind.good[o.GetName()] = value
}

func (s *store[T]) drop(name string) {
	if s.kind.good == nil { // a stream came before the first list
		s.kind.clear()
	}
	delete(s.kind.uids, name)
	delete(s.kind.good, name)
	delete(s.kind.problems, name)
}

func (k *kind[T]) clear() {
	k.good, k.problems, k.uids = map[string]T{}, map[string]string{}, map[string]string{}
}

func parsePool(o *unstructured.Unstructured) (pool.Pool, error) {
	var spec pool.Spec
	if err := decodeSpec(o, &spec); err != nil {
		return pool.Pool{}, err
	}
	p, err := spec.Parse(o.GetName())
	p.Created = o.GetCreationTimestamp().Time
	return p, err
}

func parseBlock(o *unstructured.Unstructured) (pool.Block, error) {
	var spec pool.BlockSpec
	if err := decodeSpec(o, &spec); err != nil {
		return pool.Block{}, err
	}
	b, err := spec.Parse(o.GetName())
	b.UID, b.Version = string(o.GetUID()), o.GetResourceVersion()
	return b, err
}

func decodeSpec(o *unstructured.Unstructured, into any) error {
	text, err := json.Marshal(o.Object["spec"])
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	return nil
}
