package install

import (
	"bytes"
	_ "embed" // for the default template
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"text/template"

	"github.com/containernetworking/cni/libcni"
)

// Values are what a template is filled with.
type Values struct {
	NodeName string         // {{.NodeName}}: of the Node object
	PodCIDRs []netip.Prefix // {{range .PodCIDRs}}: of the Node object, one of each family at most
	MTU      int            // {{.MTU}}: that fits the way to every other pod; 0: not known
}

//go:embed default.conflist
var defaultTemplate string

// Template makes the network configuration.
type Template struct{ template *template.Template }

// ParseTemplate reads the template at path, the default one if that is empty. It
// is one of text/template over Values, with one function more: json.
func ParseTemplate(path string) (*Template, error) {
	text := defaultTemplate
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text = string(data)
	}
	parsed, err := template.New("conflist").Option("missingkey=error").
		Funcs(template.FuncMap{"json": asJSON}).Parse(text)
	if err != nil {
		return nil, err
	}
	t := &Template{parsed}
	// What does not work with values like these will not work later on.
	_, err = t.Render(Values{
		NodeName: "node-1",
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		MTU:      1450,
	})
	return t, err
}

// Render fills the template in. What comes out must be a network configuration
// list.
func (t *Template) Render(v Values) ([]byte, error) {
	var b bytes.Buffer
	if err := t.template.Execute(&b, v); err != nil {
		return nil, err
	}
	if _, err := libcni.NetworkConfFromBytes(b.Bytes()); err != nil {
		return nil, fmt.Errorf("the template makes no network configuration list: %w", err)
	}
	return b.Bytes(), nil
}

func asJSON(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}
