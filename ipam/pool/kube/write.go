package kube

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/ipam/pool"
)

// timeout ends a request that is not answered. The API server may serve it still.
const timeout = 10 * time.Second

// Create implements pool.API.
func (s *Source) Create(ctx context.Context, b pool.Block) (pool.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	o, err := object(b)
	if err != nil {
		return pool.Block{}, err
	}
	made, err := s.client.Resource(blockResource).Create(ctx, o, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return pool.Block{}, fmt.Errorf("%w: %w", pool.ErrConflict, err)
	}
	if err != nil {
		return pool.Block{}, err
	}
	return parseBlock(made)
}

// Update implements pool.API. What others wrote into the object's metadata stays:
// the version vouches for the rest.
func (s *Source) Update(ctx context.Context, b pool.Block) (pool.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	o, err := s.client.Resource(blockResource).Get(ctx, b.Name, metav1.GetOptions{})
	if err != nil {
		return pool.Block{}, conflict(err)
	}
	if string(o.GetUID()) != b.UID || o.GetResourceVersion() != b.Version {
		return pool.Block{}, fmt.Errorf("%w: IPBlock %s was changed", pool.ErrConflict, b.Name)
	}
	fresh, err := object(b)
	if err != nil {
		return pool.Block{}, err
	}
	o.Object["spec"] = fresh.Object["spec"]
	made, err := s.client.Resource(blockResource).Update(ctx, o, metav1.UpdateOptions{})
	if err != nil {
		return pool.Block{}, conflict(err)
	}
	return parseBlock(made)
}

// Delete implements pool.API.
func (s *Source) Delete(ctx context.Context, b pool.Block) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	uid := types.UID(b.UID)
	err := s.client.Resource(blockResource).Delete(ctx, b.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &b.Version},
	})
	if err != nil {
		return conflict(err)
	}
	return nil
}

// Get implements pool.API.
func (s *Source) Get(ctx context.Context, name string) (pool.Block, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	o, err := s.client.Resource(blockResource).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return pool.Block{}, false, nil
	}
	if err != nil {
		return pool.Block{}, false, err
	}
	b, err := parseBlock(o)
	return b, err == nil, err
}

// NodeExists implements pool.API.
func (s *Source) NodeExists(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := s.client.Resource(nodeResource).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// conflict says which refusals mean that the object is not what was thought.
func conflict(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: %w", pool.ErrConflict, err)
	}
	return err
}

// object is a block as the API has it.
func object(b pool.Block) (*unstructured.Unstructured, error) {
	spec := b.Spec()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&spec)
	if err != nil {
		return nil, fmt.Errorf("encode IPBlock %s: %w", b.Name, err)
	}
	o := &unstructured.Unstructured{Object: map[string]any{"spec": content}}
	o.SetAPIVersion(Group + "/" + Version)
	o.SetKind(pool.KindBlock)
	o.SetName(b.Name)
	return o, nil
}
