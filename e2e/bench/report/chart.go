package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/fairlead/fairlead/e2e/bench"
)

// Sizes of a chart: what a phone is wide, so that its letters are not small there.
const (
	chartWidth  = 380
	chartHeight = 250
	legendRow   = 15
	barRow      = 13
	letters     = 10
	imageDPI    = 192
)

// chart is a drawing: what it is called, and how it is drawn.
type chart struct {
	name    string // of its files
	title   string
	caption string // what it shows, and how to read it
	legend  []series
	height  vg.Length
	plot    func() (*plot.Plot, error)
}

// series is a candidate in a chart.
type series struct {
	candidate string
	points    []point
}

// point is a figure with a number of Services.
type point struct {
	services float64
	bench.Interval
}

// Len, XY and YError are of plotter.YErrorBars: a series is its own data.
func (s series) Len() int                { return len(s.points) }
func (s series) XY(i int) (x, y float64) { return s.points[i].services, s.points[i].Estimate }
func (s series) YError(i int) (a, b float64) {
	p := s.points[i]
	return p.Estimate - p.Low, p.High - p.Estimate
}

// lines are series against the number of Services, both axes logarithmic.
func lines(all []series, yLabel string) func() (*plot.Plot, error) {
	return func() (*plot.Plot, error) {
		p := newPlot()
		p.X.Label.Text, p.Y.Label.Text = "Services", yLabel
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker, p.Y.Tick.Marker = services(all), decimals{}
		p.Add(grid())
		for _, s := range all {
			line, points, err := plotter.NewLinePoints(s)
			if err != nil {
				return nil, fmt.Errorf("draw %s: %w", s.candidate, err)
			}
			bars, err := plotter.NewYErrorBars(s)
			if err != nil {
				return nil, fmt.Errorf("draw %s: %w", s.candidate, err)
			}
			style := styleOf(s.candidate)
			line.Color, line.Width = style.colour, vg.Points(1.8)
			bars.Color, bars.Width = style.colour, vg.Points(1)
			points.GlyphStyle = style.glyph()
			p.Add(bars, line, points)
		}
		lowest, highest := extent(all)
		p.X.Min, p.X.Max = widen(p.X.Min, p.X.Max, 1.3)
		p.Y.Min, p.Y.Max = widen(lowest, highest, 1.15)
		return p, nil
	}
}

// extent is that of the intervals, none of which reaches 0.
func extent(all []series) (lowest, highest float64) {
	lowest = math.Inf(1)
	for _, s := range all {
		for _, p := range s.points {
			lowest, highest = min(lowest, p.Low), max(highest, p.High)
		}
	}
	return lowest, highest
}

// widen makes room beside the first and the last point of a logarithmic axis, and
// more where they are close to each other.
func widen(low, high, by float64) (float64, float64) {
	for high*by/(low/by) < 4 {
		by *= 1.2
	}
	return low / by, high * by
}

// bars are ratios, a group of bars for each thing that is measured, a bar for each
// candidate.
func bars(groups []string, all []series) func() (*plot.Plot, error) {
	return func() (*plot.Plot, error) {
		p := newPlot()
		p.X.Label.Text = "direct = 1"
		p.Add(grid())
		step := 1 / float64(len(all)+1)
		highest := 1.0
		for i, s := range all {
			style := styleOf(s.candidate)
			for _, q := range s.points {
				at := -q.services + (float64(len(all)-1)/2-float64(i))*step
				if err := addBar(p, q.Interval, at, style.colour); err != nil {
					return nil, err
				}
				highest = max(highest, q.High)
			}
		}
		one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -float64(len(groups)) + 0.4}, {X: 1, Y: 0.6}})
		if err != nil {
			return nil, err
		}
		one.Color, one.Width = ink, vg.Points(1)
		p.Add(one)
		var ticks []plot.Tick
		for i, g := range groups {
			ticks = append(ticks, plot.Tick{Value: -float64(i), Label: g})
		}
		p.Y.Tick.Marker, p.Y.Tick.Width = plot.ConstantTicks(ticks), 0
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, min(highest, maxRatio)*1.05, -float64(len(groups))+0.4, 0.6
		return p, nil
	}
}

// maxRatio is where bars are cut off: one wild interval would make all others
// small.
const maxRatio = 6

// addBar adds a bar from 0 and its interval.
func addBar(p *plot.Plot, v bench.Interval, at float64, c color.Color) error {
	bar, err := plotter.NewLine(plotter.XYs{{X: 0, Y: at}, {X: min(v.Estimate, maxRatio), Y: at}})
	if err != nil {
		return fmt.Errorf("draw bar: %w", err)
	}
	bar.Color, bar.Width = c, barRow*0.55
	whisker, err := plotter.NewLine(plotter.XYs{{X: min(v.Low, maxRatio), Y: at}, {X: min(v.High, maxRatio), Y: at}})
	if err != nil {
		return fmt.Errorf("draw interval: %w", err)
	}
	whisker.Color, whisker.Width = ink, vg.Points(1.2)
	p.Add(bar, whisker)
	return nil
}

func newPlot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	face := font.Font{Typeface: "Liberation", Variant: "Sans", Size: letters}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color = muted, muted
		axis.Label.TextStyle.Font, axis.Tick.Label.Font = face, face
		axis.Label.TextStyle.Color, axis.Tick.Label.Color = ink, ink
		axis.Padding = vg.Points(3)
	}
	return p
}

func grid() *plotter.Grid {
	g := plotter.NewGrid()
	g.Vertical.Color, g.Horizontal.Color = faint, faint
	return g
}

// services ticks each number of Services that was measured.
func services(all []series) plot.Ticker {
	var ticks plot.ConstantTicks
	seen := map[float64]bool{}
	for _, s := range all {
		for _, p := range s.points {
			if !seen[p.services] {
				ticks = append(ticks, plot.Tick{Value: p.services, Label: thousands(p.services)})
			}
			seen[p.services] = true
		}
	}
	return ticks
}

func thousands(n float64) string {
	if n >= 1000 {
		return fmt.Sprintf("%gk", n/1000)
	}
	return fmt.Sprint(n)
}

// decimals ticks some round numbers of each power of ten: more where the axis is
// short.
type decimals struct{}

// Ticks implements plot.Ticker.
func (decimals) Ticks(low, high float64) []plot.Tick {
	digits := []float64{1, 2, 5}
	if high/low < 10 {
		digits = []float64{1, 1.5, 2, 3, 5, 7}
	}
	if high/low > 1000 {
		digits = []float64{1}
	}
	var ticks []plot.Tick
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for _, digit := range digits {
			if v := digit * power; v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.5g", v)})
			}
		}
	}
	return ticks
}

// render draws a chart on a canvas: above the legend in two columns, below the plot.
func (c chart) render(canvas vg.CanvasSizer) error {
	p, err := c.plot()
	if err != nil {
		return fmt.Errorf("chart %s: %w", c.name, err)
	}
	all := draw.New(canvas)
	above := legendHeight(len(c.legend))
	c.drawLegend(draw.Crop(all, 0, 0, all.Max.Y-all.Min.Y-above, 0))
	p.Draw(draw.Crop(all, 2, -6, 2, -above))
	return nil
}

// legendHeight is that of a title and of so many entries in two columns.
func legendHeight(entries int) vg.Length { return legendRow * vg.Length((entries+1)/2+1) }

func (c chart) drawLegend(at draw.Canvas) {
	face := text.Style{
		Color: ink, Handler: plot.DefaultTextHandler, YAlign: draw.YCenter,
		Font: font.Font{Typeface: "Liberation", Variant: "Sans", Size: letters},
	}
	bold := face
	bold.Font.Weight = 2 // font.WeightBold of golang.org/x/image
	at.FillText(bold, vg.Point{X: at.Min.X + 4, Y: at.Max.Y - legendRow/2}, c.title)
	for i, s := range c.legend {
		row, column := vg.Length(i/2+1), vg.Length(i%2)
		from := vg.Point{X: at.Min.X + 10 + column*chartWidth/2, Y: at.Max.Y - legendRow*(row+0.5)}
		at.DrawGlyph(styleOf(s.candidate).glyph(), from)
		from.X += 9
		at.FillText(face, from, s.candidate)
	}
}

// svg is the chart as an element for a page, and png as a picture.
func (c chart) svg() ([]byte, error) {
	canvas := vgsvg.New(chartWidth, c.height)
	if err := c.render(canvas); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.name, err)
	}
	return out.Bytes(), nil
}

func (c chart) png() ([]byte, error) {
	canvas := vgimg.NewWith(vgimg.UseWH(chartWidth, c.height), vgimg.UseDPI(imageDPI), vgimg.UseBackgroundColor(color.White))
	if err := c.render(canvas); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := (vgimg.PngCanvas{Canvas: canvas}).WriteTo(&out); err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.name, err)
	}
	return out.Bytes(), nil
}
