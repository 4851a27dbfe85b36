package cni

import "encoding/json"

// bridgeKeys and macvlanKeys are the keys that only one mode has.
var (
	bridgeKeys = []string{
		"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "nonMasqueradeCIDRs",
		"hairpinMode", "promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "portIsolation",
	}
	macvlanKeys = []string{"master", "macvlanMode", "linkInContainer", "bcqueuelen"}
)

// meantMode is the mode that a configuration means, name being what it says:
// those of the reference plugins do not name theirs, and that of macvlan uses the
// key mode for something else. Package macvlan lists the rules.
func meantMode(name string, stdin []byte) (string, error) {
	switch name {
	case "private", "vepa", "passthru":
		return modeMacvlan, nil
	case "", modeBridge:
	default:
		return name, nil
	}
	var keys map[string]json.RawMessage
	if err := decode(stdin, &keys); err != nil {
		return "", err
	}
	ofMacvlan, ofBridge := firstOf(keys, macvlanKeys), firstOf(keys, bridgeKeys)
	if ofMacvlan == "" {
		return modeBridge, nil
	}
	if ofBridge != "" {
		return "", invalid(`mode: %q is not enough where the configuration has both %s, of macvlan, and %s, of bridge: mode must be "macvlan", or one of them go`,
			name, ofMacvlan, ofBridge)
	}
	return modeMacvlan, nil
}

// firstOf is the first of names that keys has, "" if it has none.
func firstOf(keys map[string]json.RawMessage, names []string) string {
	for _, name := range names {
		if _, ok := keys[name]; ok {
			return name
		}
	}
	return ""
}
