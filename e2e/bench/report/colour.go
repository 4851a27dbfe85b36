package report

import (
	"fmt"
	"image/color"
	"strings"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// Colours of what is not a candidate, in light.
var (
	ink   = color.NRGBA{0x1c, 0x23, 0x2b, 0xff}
	muted = color.NRGBA{0x7d, 0x86, 0x90, 0xff}
	faint = color.NRGBA{0xdf, 0xe3, 0xe8, 0xff}
)

// style is how a candidate looks, in every chart the same. Candidates differ by
// shape as well, for who does not see colours.
type style struct {
	colour color.NRGBA
	dark   string // the colour on a dark page
	shape  draw.GlyphDrawer
}

func (s style) glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.colour, Radius: vg.Points(3), Shape: s.shape}
}

func styleOf(candidate string) style {
	switch candidate {
	case datapath.Direct:
		return style{color.NRGBA{0x6b, 0x72, 0x80, 0xff}, "#9ca3af", draw.RingGlyph{}}
	case datapath.Iptables:
		return style{color.NRGBA{0x1d, 0x4e, 0xd8, 0xff}, "#7aa5ff", draw.SquareGlyph{}}
	case datapath.IptablesLegacy:
		return style{color.NRGBA{0x25, 0x63, 0xeb, 0xff}, "#60a5fa", draw.BoxGlyph{}}
	case datapath.IptablesNFT:
		return style{color.NRGBA{0x0d, 0x94, 0x88, 0xff}, "#2dd4bf", draw.PyramidGlyph{}}
	case datapath.EBPF:
		return style{color.NRGBA{0xea, 0x58, 0x0c, 0xff}, "#fb923c", draw.CircleGlyph{}}
	case datapath.KubeProxyIptables:
		return style{color.NRGBA{0x7c, 0x3a, 0xed, 0xff}, "#a78bfa", draw.PlusGlyph{}}
	}
	return style{color.NRGBA{0xdb, 0x27, 0x77, 0xff}, "#f472b6", draw.CrossGlyph{}}
}

func hex(c color.NRGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// colours is CSS variable → colour, for a light and for a dark page.
func colours() (light, dark map[string]string) {
	light = map[string]string{"ink": hex(ink), "muted": hex(muted), "faint": hex(faint)}
	dark = map[string]string{"ink": "#E6EAEF", "muted": "#8B949E", "faint": "#30363D"}
	for _, name := range datapath.Candidates {
		s := styleOf(name)
		light[name], dark[name] = hex(s.colour), s.dark
	}
	return light, dark
}

// themed takes the colours of a drawing from the page.
func themed(svg string) string {
	light, _ := colours()
	var replace []string
	for name, colour := range light {
		replace = append(replace, colour, "var(--"+name+")")
	}
	return strings.NewReplacer(replace...).Replace(svg)
}
