package hostlocal

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
)

// environment is what CNI_ARGS says.
type environment struct {
	ip  netip.Addr // requested; zero: none
	pod string     // namespace/name, "" outside Kubernetes
}

func decodeEnv(args string) (environment, error) {
	var known struct {
		types.CommonArgs
		IP                types.UnmarshallableString
		MAC               types.UnmarshallableString // for the plugin that delegates
		K8S_POD_NAMESPACE types.UnmarshallableString //nolint:revive // fields are named as the keys
		K8S_POD_NAME      types.UnmarshallableString //nolint:revive // fields are named as the keys
	}
	if err := types.LoadArgs(args, &known); err != nil {
		return environment{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %q: %v", args, err), "")
	}
	var env environment
	if known.K8S_POD_NAME != "" {
		env.pod = string(known.K8S_POD_NAMESPACE + "/" + known.K8S_POD_NAME)
	}
	if known.IP == "" {
		return env, nil
	}
	var err error
	if env.ip, err = parseIP("CNI_ARGS IP", string(known.IP)); err != nil {
		return env, types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	return env, nil
}
