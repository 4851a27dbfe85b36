package report

import (
	"bytes"
	"fmt"
	"html"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// results are of every candidate, one of which is wrong, with some numbers of
// Services.
func results() datapath.Results {
	r := datapath.Results{
		Schema: datapath.Schema, Suite: "full", Started: time.Unix(0, 0).UTC(), Ended: time.Unix(3600, 0).UTC(),
		Machine:  datapath.Machine{CPUs: 2, CPU: strings.Repeat("A processor with a long name ", 4), Kernel: "6.18", LoadBefore: [3]float64{9, 9, 9}},
		Services: []int{1, 1000, 30_000},
		Checks:   []datapath.Check{{Candidate: datapath.EBPF, Measure: "tcp-new", Services: 1, Spread: map[string]int{"a": 300}, Wrong: wrong}},
	}
	r.CNI = &bench.CNIReport{Blocks: 2, Figures: []bench.Figure{{
		Name: "ADD above starting the program", Unit: "ms", Interval: bench.Interval{Estimate: 2.5, Low: 2.4, High: 2.6}, AtMost: 3, Verdict: bench.Met,
	}}}
	for _, name := range datapath.Candidates {
		r.Candidates = append(r.Candidates, datapath.Candidate{Name: name, Version: "v1"})
	}
	for _, kind := range []string{"tcp-new/exchange", "tcp-new/connect", "tcp-new/cpu", "udp-new/exchange", "cold/cold sync", "change/change", "change/resident"} {
		id, figure, _ := strings.Cut(kind, "/")
		for i, n := range r.Services {
			m := datapath.Measure{ID: id, Title: "Title of " + id, Figure: figure, Name: figure, Unit: "µs", Services: n, Base: datapath.Direct, Blocks: 2, Resolution: 0.05}
			for j, c := range r.Candidates {
				v := float64((i + 1) * (j + 3))
				m.Rows = append(m.Rows, datapath.Row{
					Candidate: c.Name, Values: []float64{v, v},
					Median: &bench.Interval{Estimate: v, Low: 0.9 * v, High: 1.2 * v},
					Ratio:  &bench.Interval{Estimate: v / 3, Low: 0.3 * v, High: 0.4 * v},
				})
			}
			m.Rows[4] = datapath.Row{Candidate: datapath.EBPF, Flaw: datapath.Flaw{Wrong: wrong}}
			r.Measures = append(r.Measures, m)
		}
	}
	return r
}

const wrong = "of 300 connections the backends got a 300"

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path, err := Write(dir, results())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("<svg")); n != 8 {
		t.Errorf("%d charts, want 8", n)
	}
	if !bytes.Contains(text, []byte("wrong: "+wrong)) {
		t.Error("it does not say what is wrong")
	}
	summary, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{"report.html": text, "report.md": summary} {
		if !bytes.Contains(text, []byte("at most 3: met")) {
			t.Errorf("%s has no figure of the CNI plugin", file)
		}
	}
	// It needs nothing beside it: no address but names of XML.
	for _, found := range regexp.MustCompile(`(?:src|href)="[^"]*"|url\(|https?://[^"' ]*`).FindAll(text, -1) {
		if s := string(found); s != `href="data:,"` && !strings.HasPrefix(s, "http://www.w3.org/") {
			t.Errorf("it asks for %s", s)
		}
	}
	// The colours are the page's.
	light, _ := colours()
	body := text[bytes.Index(text, []byte("<body>")):]
	for name, colour := range light {
		if bytes.Contains(body, []byte(colour)) {
			t.Errorf("the colour of %s stands in the page where it cannot be dark", name)
		}
	}
	picture, err := os.Open(filepath.Join(dir, "connection.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = picture.Close() }()
	if image, err := png.Decode(picture); err != nil || image.Bounds().Dx() < 1000 {
		t.Errorf("connection.png: %v, %v", image.Bounds(), err)
	}
}

// TestPageInBrowser has a browser say what it thinks of the page, on a phone and
// on a desk, light and dark.
func TestPageInBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	dir := t.TempDir()
	path, err := Write(dir, results())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		width, scheme int
		background    string
	}{
		"a phone, dark": {390, 0, "rgb(13, 17, 23)"},
		"a desk, light": {1200, 1, "rgb(255, 255, 255)"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
				"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
				"--user-data-dir="+t.TempDir(), "--enable-logging=stderr", "--hide-scrollbars",
				"--window-size=1300,900", fmt.Sprintf("--blink-settings=preferredColorScheme=%d", test.scheme),
				"--dump-dom", "file://"+framed(t, path, test.width))
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s", err, &stderr)
			}
			want := fmt.Sprintf(`data-seen="%d of %d, %s"`, test.width, test.width, test.background)
			if got := regexp.MustCompile(`data-seen="[^"]*"`).FindString(stdout.String()); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if strings.Contains(stderr.String(), "CONSOLE") {
				t.Errorf("the console says:\n%s", &stderr)
			}
		})
	}
}

// framed is a page that shows the page in a frame of some width, since a window
// cannot be as narrow as a phone. It notes how wide the page wants to be, how wide
// the frame is, and the page's colour.
func framed(t *testing.T, path string, width int) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	inner := string(text) + "<script>const e = document.documentElement;" +
		"parent.document.documentElement.dataset.seen = `${e.scrollWidth} of ${innerWidth}, ${getComputedStyle(document.body).backgroundColor}`</script>"
	outer := fmt.Sprintf(`<!doctype html><html style="color-scheme: light dark"><link rel="icon" href="data:,"><iframe style="width:%dpx;height:800px;border:0" srcdoc="%s"></iframe></html>`,
		width, html.EscapeString(inner))
	frame := filepath.Join(t.TempDir(), "frame.html")
	if err := os.WriteFile(frame, []byte(outer), 0o600); err != nil {
		t.Fatal(err)
	}
	return frame
}
