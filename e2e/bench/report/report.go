// Package report shows the results of fairlead-lab bench: a page that needs
// nothing beside it, and its charts as SVG and PNG.
package report

import (
	_ "embed" // the page's template
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot/vg"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/datapath"
	"github.com/fairlead/fairlead/e2e/bench/load"
)

//go:embed report.html.tmpl
var page string

// Write writes report.html, its main figures as report.md, and the charts into a directory, and returns the path
// of the page.
func Write(dir string, r datapath.Results) (string, error) {
	charts := charts(r)
	content := content{Results: r, Busy: busy(r.Machine)}
	for _, c := range charts {
		svg, err := c.svg()
		if err != nil {
			return "", err
		}
		png, err := c.png()
		if err != nil {
			return "", err
		}
		for suffix, data := range map[string][]byte{".svg": svg, ".png": png} {
			if err := os.WriteFile(filepath.Join(dir, c.name+suffix), data, 0o644); err != nil {
				return "", fmt.Errorf("write chart: %w", err)
			}
		}
		content.Charts = append(content.Charts, drawing{c.title, c.caption, inline(svg, c.title)})
	}
	var summary strings.Builder
	if err := Markdown(&summary, r); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.md"), []byte(summary.String()), 0o644); err != nil {
		return "", fmt.Errorf("write summary: %w", err)
	}
	path := filepath.Join(dir, "report.html")
	file, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("write report: %w", err)
	}
	defer func() { _ = file.Close() }()
	t, err := template.New("report").Funcs(functions).Parse(page)
	if err != nil {
		return "", fmt.Errorf("read the report's template: %w", err)
	}
	if err := t.Execute(file, content); err != nil {
		return "", fmt.Errorf("write report: %w", err)
	}
	return path, file.Close()
}

// content is what the page shows.
type content struct {
	datapath.Results
	Charts []drawing
	Busy   bool // more wanted to run than the machine has processors
}

type drawing struct {
	Title, Caption string
	SVG            template.HTML
}

// inline makes an element of a drawing: without what only a file needs, as wide
// as the page lets it be, in the page's colours.
func inline(svg []byte, title string) template.HTML {
	text := string(svg)
	text = text[strings.Index(text, "<svg"):]
	tag, rest, _ := strings.Cut(text, ">")
	box := tag[strings.Index(tag, "viewBox="):]
	box = box[:strings.Index(box[len(`viewBox="`):], `"`)+len(`viewBox="`)+1]
	return template.HTML(`<svg role="img" aria-label="` + template.HTMLEscapeString(title) + `" ` + box + `>` + themed(rest)) //nolint:gosec // drawn by us
}

// charts are those that the results have something for.
func charts(r datapath.Results) []chart {
	var all []chart
	for _, c := range []struct{ id, figure, name, title, caption string }{
		{"tcp-new", load.Exchange, "connection", "TCP connection, request, response: cluster IP", "A new connection from a pod to a cluster IP, with one request and its response, in microseconds."},
		{"tcp-new", load.Connect, "first-packet", "First packet: connect() to a cluster IP", "What connect() takes: the first packet's way to a backend and back."},
		{"no-service-new", load.Exchange, "no-service", "TCP connection for no Service", "The same to a pod's own address: what the proxy costs those who do not ask it."},
		{"node-port-new", load.Exchange, "node-port", "TCP connection from outside: node port", "From outside the cluster to a port of the node."},
		{"udp-new", load.Exchange, "udp", "UDP flow, request, response: cluster IP", "A new UDP flow from a pod to a cluster IP."},
		{"tcp-new", "cpu", "processor", "Processor time for a TCP connection", "Processor time of client and server, with all that the kernel does for them, for one connection to a cluster IP."},
		{"cold", "cold sync", "cold", "The proxy starts on a fresh node", "From the start of the process until all Services work, in milliseconds."},
		{"restart", "warm sync", "warm", "The proxy starts again", "From the start of the process, after it was killed, until it has found everything in place."},
		{"change", "change", "change", "One endpoint changed", "From the change in the API to the first connection that the new endpoint answers."},
		{"change", "maps", "maps", "Memory of the proxy's maps", "What the maps of the proxy occupy in the kernel."},
		{"change", "resident", "memory", "Memory of the proxy", "Resident memory of the proxy's process."},
	} {
		measures := slices.DeleteFunc(slices.Clone(r.Measures), func(m datapath.Measure) bool { return m.ID != c.id || m.Figure != c.figure })
		if drawn := against(measures); len(drawn) > 0 {
			height := chartHeight + legendHeight(len(drawn))
			all = append(all, chart{c.name, c.title, c.caption, drawn, height, lines(drawn, measures[0].Unit)})
		}
	}
	if c, ok := ratios(r); ok {
		all = slices.Insert(all, 0, c)
	}
	return all
}

// against are series of one figure against the number of Services.
func against(measures []datapath.Measure) []series {
	var all []series
	for _, m := range measures {
		for _, row := range m.Rows {
			if row.Median == nil || row.Median.Low <= 0 {
				continue
			}
			i := slices.IndexFunc(all, func(s series) bool { return s.candidate == row.Candidate })
			if i < 0 {
				i, all = len(all), append(all, series{candidate: row.Candidate})
			}
			all[i].points = append(all[i].points, point{float64(m.Services), *row.Median})
		}
	}
	return all
}

// ratios is the first figure of each thing that traffic was measured by, beside
// direct.
func ratios(r datapath.Results) (chart, bool) {
	var groups []string
	var all []series
	for _, m := range r.Measures {
		if m.Services != r.Services[0] || m.Base != datapath.Direct || m.Figure != load.Exchange {
			continue
		}
		groups = append(groups, short[m.ID])
		for _, row := range m.Rows {
			if row.Ratio == nil || row.Candidate == m.Base {
				continue
			}
			i := slices.IndexFunc(all, func(s series) bool { return s.candidate == row.Candidate })
			if i < 0 {
				i, all = len(all), append(all, series{candidate: row.Candidate})
			}
			all[i].points = append(all[i].points, point{float64(len(groups) - 1), *row.Ratio})
		}
	}
	height := 60 + legendHeight(len(all)) + barRow*vg.Length(len(groups)*(len(all)+1))
	return chart{
		"ratios", fmt.Sprintf("Time beside direct, Services: %d", r.Services[0]),
		"How many times as long a request and its response take as without a proxy, less is better. The thin line is the 95 % interval.",
		all, height, bars(groups, all),
	}, len(all) > 0
}

// short are names for the side of a chart.
var short = map[string]string{
	"tcp-new": "TCP connection", "no-service-new": "no Service", "node-port-new": "node port", "udp-new": "UDP flow",
	"tcp-same": "TCP request", "udp-same": "UDP request", "sctp-new": "SCTP", "packets-new": "no socket",
	"external-new": "external IP", "tcp6-new": "TCP, IPv6",
}

// functions are the template's.
var functions = template.FuncMap{
	"css": func() template.CSS {
		light, dark := colours()
		return template.CSS(":root{" + declarations(light) + "}@media(prefers-color-scheme:dark){:root{" + declarations(dark) + "}}")
	},
	"join":    strings.Join,
	"number":  func(v float64) string { return fmt.Sprintf("%.4g", v) },
	"ratio":   func(v float64) string { return fmt.Sprintf("%.2f", v) },
	"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
	"GB":      func(bytes uint64) string { return fmt.Sprintf("%.1f GB", float64(bytes)/1e9) },
	"first":   firstLine,
	"wanted":  bench.Figure.Wanted,
}

func declarations(variables map[string]string) string {
	var out strings.Builder
	for name, value := range variables {
		fmt.Fprintf(&out, "--%s:%s;", name, value)
	}
	return out.String()
}
