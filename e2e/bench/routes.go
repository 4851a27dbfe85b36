package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// RoutesOptions is how to measure one TCP stream between pods of two nodes.
type RoutesOptions struct {
	BinDir   string // where the programs are
	Mode     string // of the lab's proxies
	Blocks   int
	Slice    time.Duration // of each stream in a block
	Seed     uint64
	MaxSteal float64 // see Blocks
	// Progress gets a line for each step.
	Progress func(string)
}

// RoutesReport is the document of fairlead-lab bench routes -o json.
type RoutesReport struct {
	Seed      uint64 `json:"seed"`
	Mode      string `json:"mode"`
	Blocks    int    `json:"blocks"`
	Discarded int    `json:"discarded"` // blocks with too much steal
	// Rates are the medians: candidate → 10^9 bits a second.
	Rates map[string]float64 `json:"rates"`
	// Resolution is by how much of 1 two streams over the same path may differ.
	Resolution float64  `json:"resolution"`
	Figures    []Figure `json:"figures"`
}

// The ways of a stream. Each is measured in both families.
const (
	bareWay   = "bare" // veths and routes alone, with as many routers as between two nodes
	twinWay   = "bare, the same again"
	directWay = "direct"
	vxlanWay  = "VXLAN"
)

const throughput = "Gbit/s"

// Routes compares streams between pods of nodes, directly and through VXLAN, with those
// over a bare path. Everything on the way is real: fairlead node, a proxy and
// fairlead-cni have made it.
func Routes(ctx context.Context, opts RoutesOptions) (RoutesReport, error) {
	report := RoutesReport{Seed: opts.Seed, Mode: opts.Mode, Rates: map[string]float64{}}
	opts.Progress("building three nodes, the last one behind a router, and a bare path")
	l, err := lab.New(ctx, lab.Options{Nodes: 3, Routed: true, Mode: opts.Mode, BinDir: opts.BinDir})
	if err != nil {
		return report, err
	}
	defer func() { _ = l.Close() }()
	streams, err := openStreams(ctx, l)
	for _, s := range streams {
		defer s.close()
	}
	if err != nil {
		return report, err
	}
	var candidates []Candidate
	for _, s := range streams {
		candidates = append(candidates, Candidate{Name: s.name, Slice: func(ctx context.Context) (Sample, error) {
			rate, err := s.rate(ctx, opts.Slice)
			return Sample{throughput: {rate}}, err
		}})
	}
	random := rand.New(rand.NewPCG(opts.Seed, 0))
	result, err := Blocks{Count: opts.Blocks, Random: random, MaxSteal: opts.MaxSteal, Progress: func(p Progress) {
		opts.Progress(fmt.Sprintf("block %d of %d, steal %.1f %%", p.Block, p.Count, 100*p.Steal))
	}}.Run(ctx, candidates)
	if err != nil {
		return report, err
	}
	report.Blocks, report.Discarded = result.Blocks, result.Discarded
	report.compare(comparison{result, random}, streams)
	return report, nil
}

// compare makes the figures.
func (r *RoutesReport) compare(c comparison, streams []*byteStream) {
	for _, s := range streams {
		r.Rates[s.name] = c.result.Series(s.name, throughput).Quantile(0.5)
	}
	for _, family := range []string{IPv4, IPv6} {
		beside := func(way string) Figure {
			return Figure{Name: way + " to bare, " + family, Unit: "×", Interval: c.ratio(throughput, way+" "+family, bareWay+" "+family)}
		}
		same, direct := beside(twinWay), beside(directWay)
		r.Resolution = max(r.Resolution, same.High-1, 1-same.Low)
		direct.AtLeast = 0.95
		r.Figures = append(r.Figures, same, direct.judged(), beside(vxlanWay))
	}
}

// byteStream is a TCP connection between two pods, whose far end counts what comes.
type byteStream struct {
	name string
	conn *net.TCPConn
	came *atomic.Int64
}

// openStreams makes the pods and opens all streams.
func openStreams(ctx context.Context, l *lab.Lab) ([]*byteStream, error) {
	bare, err := l.AddBarePath()
	if err != nil {
		return nil, err
	}
	var pods []*lab.Pod
	for i, n := range l.Nodes {
		pod, err := l.AddPod(ctx, n, fmt.Sprint("pod-", i+1))
		if err != nil {
			return nil, err
		}
		pods = append(pods, pod)
	}
	var streams []*byteStream
	for i, family := range []string{IPv4, IPv6} {
		for _, way := range []struct {
			name     string
			from, to *netns.NS
			src, dst netip.Addr
		}{
			{bareWay, bare[0].NS(), bare[1].NS(), bare[0].Addrs[i], bare[1].Addrs[i]},
			{twinWay, bare[0].NS(), bare[1].NS(), bare[0].Addrs[i], bare[1].Addrs[i]},
			{directWay, pods[0].NS(), pods[1].NS(), pods[0].Addrs[i], pods[1].Addrs[i]},
			{vxlanWay, pods[0].NS(), pods[2].NS(), pods[0].Addrs[i], pods[2].Addrs[i]},
		} {
			s, err := openStream(ctx, way.from, way.to, way.src, way.dst)
			if err != nil {
				return streams, fmt.Errorf("open stream %s, %s: %w", way.name, family, err)
			}
			s.name = way.name + " " + family
			streams = append(streams, s)
		}
	}
	return streams, nil
}

// openStream connects src with dst. That the receiver sees src is looked at: a way that
// hides who sends is none.
func openStream(ctx context.Context, from, to *netns.NS, src, dst netip.Addr) (*byteStream, error) {
	var l *net.TCPListener
	err := to.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	s := &byteStream{came: &atomic.Int64{}}
	err = from.Do(func() (err error) {
		s.conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, l.Addr().(*net.TCPAddr).AddrPort())
		return err
	})
	if err != nil {
		return nil, err
	}
	far, err := l.AcceptTCP()
	if err != nil {
		s.close()
		return nil, err
	}
	if saw := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); saw != src {
		s.close()
		_ = far.Close()
		return nil, fmt.Errorf("%s saw %s instead of %s", dst, saw, src)
	}
	go s.swallow(far)
	return s, nil
}

func (s *byteStream) swallow(far *net.TCPConn) {
	defer func() { _ = far.Close() }()
	for buf := make([]byte, 256<<10); ; {
		n, err := far.Read(buf)
		s.came.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func (s *byteStream) close() { _ = s.conn.Close() }

// rate sends for a while and returns 10^9 bits a second, as they came.
func (s *byteStream) rate(ctx context.Context, d time.Duration) (float64, error) {
	buf := make([]byte, 256<<10)
	before, began := s.came.Load(), time.Now()
	sent := before
	for time.Since(began) < d {
		n, err := s.conn.Write(buf)
		sent += int64(n)
		if err != nil {
			return 0, err
		}
	}
	for s.came.Load() < sent { // nothing of this slice is to be there in the next one
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if time.Since(began) > d+time.Minute {
			return 0, io.ErrNoProgress
		}
		time.Sleep(50 * time.Microsecond)
	}
	return 8 * float64(sent-before) / time.Since(began).Seconds() / 1e9, nil
}
