package main

import (
	"reflect"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What kube-proxy has and nothing here is for, and why.
const (
	whyPeriod  = "changes are applied as they come, and what others remove is found by looking"
	whyOther   = "it is for a mode of kube-proxy's that is not Fairlead's"
	whyClient  = "three watches are all that is asked of the API server"
	whyFeature = "Fairlead has none of kube-proxy's feature gates"
	whyLog     = "the log has one level of detail"
	whyMetrics = "no metrics are hidden"
	whyBind    = "a port that is taken always ends the proxy, which is then started again"
	whyNodeIP  = "the node's addresses are those of its Node object"
)

// registerUnused makes flags of kube-proxy's that mean nothing here. Their values
// are checked all the same.
func registerUnused(cmd *cobra.Command) {
	unused := pflag.NewFlagSet("", pflag.ContinueOnError)
	for name, why := range map[string]string{
		"iptables-sync-period": whyPeriod, "iptables-min-sync-period": whyPeriod, "config-sync-period": whyPeriod,
		"ipvs-sync-period": whyOther, "ipvs-min-sync-period": whyOther,
		"ipvs-tcp-timeout": whyOther, "ipvs-tcpfin-timeout": whyOther, "ipvs-udp-timeout": whyOther,
		"log-flush-frequency": whyLog,
	} {
		unused.Duration(name, 0, why)
	}
	for name, why := range map[string]string{
		"ipvs-scheduler": whyOther, "kube-api-content-type": whyClient, "vmodule": whyLog,
		"show-hidden-metrics-for-version": whyMetrics, "log-json-info-buffer-size": whyLog, "log-text-info-buffer-size": whyLog,
	} {
		unused.String(name, "", why)
	}
	for name, why := range map[string]string{
		"ipvs-strict-arp": whyOther, "bind-address-hard-fail": whyBind,
		"log-json-split-stream": whyLog, "log-text-split-stream": whyLog,
	} {
		unused.Bool(name, false, why)
	}
	unused.StringSlice("ipvs-exclude-cidrs", nil, whyOther)
	unused.StringToString("feature-gates", nil, whyFeature)
	unused.Int32("kube-api-burst", 0, whyClient)
	unused.Float32("kube-api-qps", 0, whyClient)
	unused.IntP("v", "v", 0, whyLog)
	unused.VisitAll(func(f *pflag.Flag) {
		f.Hidden = true
		f.Annotations = map[string][]string{annotationUnused: {f.Usage}}
	})
	cmd.Flags().AddFlagSet(unused)
}

const annotationUnused = "fairlead-unused"

// setting is one that means nothing here.
type setting struct{ name, why string }

// unusedFlags are those that were given and mean nothing here.
func unusedFlags(cmd *cobra.Command) []setting {
	var out []setting
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if why := f.Annotations[annotationUnused]; why != nil {
			out = append(out, setting{"--" + f.Name, why[0]})
		}
	})
	return out
}

// unused are the settings of the file that mean nothing here.
func (c *kubeProxy) unused() []setting {
	var out []setting
	note := func(name, why string, values ...any) {
		if slices.ContainsFunc(values, func(v any) bool { return !reflect.ValueOf(v).IsZero() }) {
			out = append(out, setting{name, why})
		}
	}
	if !slices.Contains([]string{"", "0.0.0.0", "::"}, c.BindAddress) {
		note("bindAddress", whyNodeIP, c.BindAddress)
	}
	note("bindAddressHardFail", whyBind, c.BindAddressHardFail)
	client := c.ClientConnection
	note("clientConnection", whyClient, client.QPS, client.Burst, client.ContentType, client.AcceptContentTypes)
	note("configSyncPeriod", whyPeriod, c.ConfigSyncPeriod)
	note("featureGates", whyFeature, len(c.FeatureGates))
	note("iptables", whyPeriod, c.IPTables.SyncPeriod, c.IPTables.MinSyncPeriod)
	note("ipvs", whyOther, c.IPVS.Scheduler, c.IPVS.SyncPeriod, c.IPVS.MinSyncPeriod, len(c.IPVS.ExcludeCIDRs),
		c.IPVS.StrictARP, c.IPVS.TCPTimeout, c.IPVS.TCPFinTimeout, c.IPVS.UDPTimeout)
	note("logging", whyLog, c.Logging.Verbosity, len(c.Logging.VModule))
	note("nftables", whyOther, c.NFTables)
	note("portRange", whyOther, c.PortRange)
	note("showHiddenMetricsForVersion", whyMetrics, c.ShowHiddenMetricsForVersion)
	note("winkernel", whyOther, c.Winkernel, c.WindowsRunAsService)
	return out
}

// checkMode says which mode of kube-proxy's the file is for: all of them are known
// (see chooseMode).
func (c *kubeProxy) checkMode() error {
	switch c.Mode {
	case "", modeIptables, "ipvs", "nftables":
		return nil
	}
	return c.wrong("mode", "proxy-mode", c.Mode, "iptables, ipvs or nftables (or nothing)")
}

// checkPeriods refuses what kube-proxy refuses, so that a file that is good for one
// is for the other.
func (c *kubeProxy) checkPeriods() error {
	for _, p := range []struct {
		field string
		value time.Duration
	}{
		{"configSyncPeriod", c.ConfigSyncPeriod.Duration},
		{"iptables.syncPeriod", c.IPTables.SyncPeriod.Duration},
		{"iptables.minSyncPeriod", c.IPTables.MinSyncPeriod.Duration},
	} {
		if p.value < 0 {
			return c.wrong(p.field, p.field, p.value, "0 or more")
		}
	}
	if n := c.OOMScoreAdj; n != nil && (*n < -1000 || *n > 1000) {
		return c.wrong("oomScoreAdj", "oom-score-adj", *n, "-1000 to 1000")
	}
	return nil
}

// overruled are the flags that were given and that the file, as with kube-proxy,
// speaks in place of.
func overruled(cmd *cobra.Command) []string {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := kubeProxyDefaults()
	bound := &cobra.Command{}
	c.register(bound)
	own.AddFlagSet(bound.Flags())
	var out []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if own.Lookup(f.Name) != nil || slices.Contains([]string{"kubeconfig", "proxy-mode", "iptables-masquerade-bit"}, f.Name) {
			out = append(out, "--"+f.Name)
		}
	})
	return out
}
