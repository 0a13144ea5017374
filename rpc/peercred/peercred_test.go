package peercred

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestThePeerIsTheProcessAtTheOtherEnd(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := Of(conn)
	if err != nil || int(c.PID) != os.Getpid() || int(c.UID) != os.Getuid() || int(c.GID) != os.Getgid() {
		t.Errorf("%+v, %v", c, err)
	}
	if err := c.Check(c.UID); err != nil {
		t.Error(err)
	}
	if err := c.Check(c.UID + 1); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

func TestOtherConnectionsHaveNoOwner(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Of(a); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}
