package sctp

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// serveEcho sends everything back until the listener closes.
func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func TestEcho(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			server := listen(t, l.server, family.server, 9)
			go serveEcho(server)
			c := dialT(t, l.client, portOf(server.Addr()))
			for _, size := range []int{1, 2, 1000, 1163, 1164, 20_000, 100_000} {
				sent := bytes.Repeat([]byte{byte(size), 1, 2}, size/3+1)[:size]
				if n, err := c.Write(sent); n != size || err != nil {
					t.Fatalf("write %d bytes: %d, %v", size, n, err)
				}
				got := make([]byte, size)
				if _, err := io.ReadFull(c, got); err != nil {
					t.Fatalf("read %d bytes: %v", size, err)
				}
				if !bytes.Equal(got, sent) {
					t.Fatalf("%d bytes came back changed", size)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
