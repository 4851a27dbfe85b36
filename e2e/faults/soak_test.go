package faults

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

var (
	soakLasts = flag.Duration("soak", 3*time.Second, "how long TestSoak lasts in each mode")
	soakPause = flag.Duration("soak-pause", 0, "between two changes in TestSoak, and two requests of each of its clients: a soak that leaves the machine to others")
	soakSeed  = flag.Uint64("seed", 0, "what happens in TestSoak; 0: something else each time")
)

// TestSoak has pods and Services come, change and go at random, and a node's programs
// end and start again. Who uses another Service notices nothing, and in the end the
// nodes hold what they held in the beginning.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, tt := range ways {
		t.Run(tt.name, func(t *testing.T) {
			t.Logf("to repeat: -seed %d -soak %s", seed, *soakLasts)
			s := &soak{cluster: newCluster(t, 2, tt.mode), flags: tt.flags, random: rand.New(rand.NewPCG(seed, 0)), services: map[string]*corev1.Service{}}
			s.Restart(t, s.Nodes[1], unix.SIGTERM, s.mode, s.flags...) // the first one's is restarted now and then
			s.warmUp(t)
			before := s.look(t)
			for i := range s.sources {
				s.sources[i].Pause = *soakPause
			}
			tr := traffic.Start(t, s.sources...)
			for end := time.Now().Add(*soakLasts); time.Now().Before(end); time.Sleep(*soakPause) {
				s.step(t)
			}
			s.tidy(t)
			tr.GoOn(t)
			tr.End(t)
			s.compare(t, before)
		})
	}
}

type soak struct {
	cluster
	flags    []string // of the proxies
	random   *rand.Rand
	pods     []*lab.Pod
	services map[string]*corev1.Service
	made     int
	steps    int
}

// warmUp does everything once, so that what is made for good is there.
func (s *soak) warmUp(t *testing.T) {
	t.Helper()
	s.addPod(t)
	s.changeService(t)
	s.restart(t)
	s.tidy(t)
}

func (s *soak) step(t *testing.T) {
	t.Helper()
	s.steps++
	switch n := s.random.IntN(20); {
	case n < 4 && len(s.pods) < 8:
		s.addPod(t)
	case n < 8 && len(s.pods) > 0:
		s.removePod(t, s.random.IntN(len(s.pods)))
	case n < 16:
		s.changeService(t)
	case n < 19:
		s.deleteService(t)
	default:
		s.restart(t)
	}
}

func (s *soak) addPod(t *testing.T) {
	t.Helper()
	s.made++
	s.pods = append(s.pods, labtest.AddPod(t, s.Lab, s.Nodes[s.random.IntN(len(s.Nodes))], fmt.Sprintf("soak-%d", s.made)))
}

func (s *soak) removePod(t *testing.T, i int) {
	t.Helper()
	if err := s.RemovePod(t.Context(), s.pods[i]); err != nil {
		t.Fatal(err)
	}
	s.pods = slices.Delete(s.pods, i, i+1)
}

// changeService makes a Service, or makes another one of it, whose endpoints are some
// pods in some condition.
func (s *soak) changeService(t *testing.T) {
	t.Helper()
	i := s.random.IntN(30)
	name := fmt.Sprintf("soak-%d", i)
	svc := lab.NewService(name, fmt.Sprintf("10.96.1.%d", i+1), fmt.Sprintf("fd00:10:96::1:%d", i+1))
	if s.random.IntN(3) == 0 {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	if s.random.IntN(3) == 0 {
		svc.Spec.Type = corev1.ServiceTypeNodePort
		for j := range svc.Spec.Ports {
			svc.Spec.Ports[j].NodePort = int32(31000 + i)
		}
	}
	if s.random.IntN(4) == 0 {
		local := corev1.ServiceInternalTrafficPolicyLocal
		svc.Spec.InternalTrafficPolicy = &local
	}
	if s.random.IntN(4) == 0 {
		svc.Spec.ExternalIPs = []string{fmt.Sprintf("192.0.2.%d", i+1)}
	}
	var pods []*lab.Pod
	for _, p := range slices.Concat(s.Web, s.pods) {
		if s.random.IntN(2) == 0 {
			pods = append(pods, p)
		}
	}
	objects := lab.Slices(svc, pods...)
	for _, o := range objects {
		for j := range o.(*discoveryv1.EndpointSlice).Endpoints {
			ready, terminating := s.random.IntN(4) > 0, s.random.IntN(4) == 0
			o.(*discoveryv1.EndpointSlice).Endpoints[j].Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: &terminating}
		}
	}
	s.services[name] = svc
	if err := s.Apply(append(objects, svc)...); err != nil {
		t.Fatal(err)
	}
}

func (s *soak) deleteService(t *testing.T) {
	t.Helper()
	if names := slices.Sorted(maps.Keys(s.services)); len(names) > 0 {
		name := names[s.random.IntN(len(names))]
		s.delete(t, name, s.services[name])
	}
}

func (s *soak) delete(t *testing.T, name string, svc *corev1.Service) {
	t.Helper()
	if err := s.Delete(append(lab.Slices(svc), svc)...); err != nil {
		t.Fatal(err)
	}
	delete(s.services, name)
}

// restart is of the first node's programs alone: those of the other one grow old.
func (s *soak) restart(t *testing.T) {
	t.Helper()
	signal := unix.SIGTERM
	if s.random.IntN(2) == 0 {
		signal = unix.SIGKILL
	}
	if err := s.RestartAgent(s.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	s.Restart(t, s.Nodes[0], signal, s.mode, s.flags...)
}

// tidy takes everything away, and waits until the proxies have.
func (s *soak) tidy(t *testing.T) {
	t.Helper()
	for name, svc := range s.services {
		s.delete(t, name, svc)
	}
	for len(s.pods) > 0 {
		s.removePod(t, 0)
	}
	for _, n := range s.Nodes {
		eventually(t, func() error {
			if got := metric(t, n, proxyMetrics, "fairlead_frontends"); got != frontends {
				return fmt.Errorf("%s has %d frontends, want %d", n.Name, got, frontends)
			}
			return nil
		})
	}
}

// look is what each node holds in its kernel.
func (s *soak) look(t *testing.T) (held []map[string]int) {
	t.Helper()
	for _, n := range s.Nodes {
		held = append(held, holdings(t, n))
	}
	for _, at := range []string{proxyMetrics, lab.AgentMetrics} {
		held = append(held, s.process(t, at))
	}
	return held
}

// process is what a program of the second node, which lasts, holds.
func (s *soak) process(t *testing.T, at string) map[string]int {
	t.Helper()
	held := map[string]int{}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		held[at+" "+name] = metric(t, s.Nodes[1], at, name)
	}
	return held
}

// passing is what a process has more at one moment than at another: a timer, a request.
const passing = 4

// compare waits until all is as it was: what the kernel removes it removes a bit later.
func (s *soak) compare(t *testing.T, before []map[string]int) {
	t.Helper()
	for _, at := range []string{proxyMetrics, lab.AgentMetrics} {
		t.Logf("after %d steps %s has %d MB resident, of which heap %d MB", s.steps, at,
			metric(t, s.Nodes[1], at, "process_resident_memory_bytes")>>20, metric(t, s.Nodes[1], at, "go_memstats_heap_inuse_bytes")>>20)
	}
	eventually(t, func() error {
		after := s.look(t)
		for i := len(s.Nodes); i < len(after); i++ {
			for name, n := range after[i] {
				if n <= before[i][name]+passing {
					after[i][name] = before[i][name]
				}
			}
		}
		if diff := cmp.Diff(before, after); diff != "" {
			return fmt.Errorf("something is left (-before +after):\n%s", diff)
		}
		return nil
	})
}
