package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/ipam/takeover"
)

// Where container runtimes look.
const (
	defaultBinDir  = "/opt/cni/bin"
	defaultConfDir = "/etc/cni/net.d"
)

// installFlags say what to install, and where.
type installFlags struct {
	binDir, confDir      string
	binary, confTemplate string
	hostLocalDir         string
}

func (f *installFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.binDir, "cni-bin-dir", defaultBinDir, `directory of the runtime's CNI plugins, "" to install none`)
	cmd.Flags().StringVar(&f.confDir, "cni-conf-dir", defaultConfDir, `directory of the runtime's network configurations, "" to write none`)
	cmd.Flags().StringVar(&f.hostLocalDir, "host-local-dir", takeover.DefaultDir, `directory of networks of the reference plugin host-local: as long as pods have addresses from there that were not imported, no configuration is written; "" for no look`)
	cmd.Flags().StringVar(&f.binary, "cni-binary", "", "the CNI plugin to install (default: "+install.Plugin+" beside this program)")
	cmd.Flags().StringVar(&f.confTemplate, "conf-template", "", "file to make the network configuration of: a Go text/template with .NodeName, .PodCIDRs and .MTU (default: bridge mode)")
}

// nodeInstaller installs the plugin, and the configuration when the node is ready.
type nodeInstaller struct {
	installFlags
	template  *install.Template
	installed bool // the plugin is
}

// newInstaller checks the flags.
func (f installFlags) newInstaller() (*nodeInstaller, error) {
	template, err := install.ParseTemplate(f.confTemplate)
	if err != nil {
		return nil, usageError{fmt.Errorf("--conf-template %q: %w", f.confTemplate, err)}
	}
	if f.binary == "" && f.binDir != "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find %s: %w: give it by --cni-binary", install.Plugin, err)
		}
		f.binary = filepath.Join(filepath.Dir(self), install.Plugin)
	}
	return &nodeInstaller{installFlags: f, template: template}, nil
}

// plugin installs the plugin, once.
func (i *nodeInstaller) plugin() error {
	if i.installed || i.binDir == "" {
		return nil
	}
	err := install.Binary(i.binary, i.binDir)
	i.installed = err == nil
	return err
}

// config writes the configuration if it is not there as it should be. ready says
// whether pods can be made with it.
func (i *nodeInstaller) config(v install.Values, ready func(text []byte) error) error {
	if i.confDir == "" {
		return nil
	}
	text, err := i.template.Render(v)
	if err != nil {
		return fmt.Errorf("fill in --conf-template: %w", err)
	}
	if err := ready(text); err != nil {
		return err
	}
	return install.Config(i.confDir, text)
}
