package echo

import (
	"context"

	"github.com/fairlead/fairlead/e2e/netns"
)

// TB is the part of testing.TB that ServeT needs; naming it here keeps package
// testing out of the lab's binary.
type TB interface {
	netns.TB
	Error(args ...any)
}

// ServeT has a server listen in a namespace, and answer until the test ends.
func ServeT(t TB, ns *netns.NS, name string, at ...Endpoint) {
	t.Helper()
	var server *Server
	err := ns.Do(func() (err error) {
		server, err = Listen(name, at...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
