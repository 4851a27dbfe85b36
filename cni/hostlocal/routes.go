package hostlocal

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
)

// decodeRoutes hands the routes on as they are, for the plugin that makes them.
// It checks the addresses itself, to say which one is wrong.
func decodeRoutes(list []json.RawMessage) ([]*types.Route, error) {
	var routes []*types.Route
	for i, text := range list {
		path := fmt.Sprintf("ipam.routes[%d]", i)
		var addrs struct {
			Dst any `json:"dst"`
			GW  any `json:"gw"`
		}
		if err := decode(path, text, &addrs); err != nil {
			return nil, err
		}
		dst, _ := addrs.Dst.(string)
		if _, err := netip.ParsePrefix(dst); err != nil {
			return nil, invalid(path+".dst", "%s is not allowed: it must be a destination, such as 0.0.0.0/0 or fd00::/8", shown(addrs.Dst))
		}
		if addrs.GW != nil && addrs.GW != "" {
			if _, err := parseAddr(path+".gw", addrs.GW, "an address"); err != nil {
				return nil, err
			}
		}
		route := &types.Route{}
		if err := decode(path, text, route); err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	return routes, nil
}
