package hostlocal

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/ipam"
)

// Codes of errors for which the specification has none.
const (
	// ErrAlreadyAllocated says that ADD was called again without a DEL.
	ErrAlreadyAllocated uint = 120
	// ErrNotAllocated says to CHECK that the rows are not those of the ADD.
	ErrNotAllocated uint = 121
)

// invalid is the error of a configuration: the field's path and a sentence with
// its value and what is allowed.
func invalid(path, format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, path+": "+fmt.Sprintf(format, args...), "")
}

// coded gives an error of the allocator or the store its code.
//
// An address that is not to be had now, because all are held or another pod has
// the one requested, is free again when a pod goes: "try again later" (11) is
// what the specification has for that, and what a runtime should do. So is a
// store that others keep busy. All else that goes wrong with the store is an I/O
// failure (5). An error that has a code keeps it.
func coded(err error) error {
	if known := (*types.Error)(nil); err == nil || errors.As(err, &known) {
		return err
	}
	var (
		exhausted *ipam.ExhaustedError
		noBlock   *ipam.NoBlockError
		held      *ipam.HeldError
		request   *ipam.RequestError
		duplicate *ipam.DuplicateError
	)
	code := types.ErrIOFailure
	switch {
	case errors.As(err, &exhausted), errors.As(err, &noBlock), errors.As(err, &held),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = types.ErrTryAgainLater
	case errors.As(err, &request):
		code = types.ErrInvalidNetworkConfig
	case errors.As(err, &duplicate):
		code = ErrAlreadyAllocated
	}
	return types.NewError(code, err.Error(), "")
}
