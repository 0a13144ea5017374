// Command bare is the benchmark's floor: it makes the kernel objects of a regular pod, the very ones that the CNI
// executable makes, with every argument given. It parses no JSON, asks no agent, looks nothing up, takes no lock and
// undoes nothing: one message, one answer, the next.
//
//	bare ADD NETNS VETH VETH-MAC POD-MAC ALIAS ADDRESS MTU TABLE INDEX
//	bare DEL VETH ADDRESS TABLE
//
// INDEX is the interface index that the host veth shall have. On stdout it tells the nanoseconds that the loop took
// without the process around it. The benchmark's own test compares what it makes with what the CNI executable makes.
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var loop func() error
	switch {
	case len(args) == 10 && args[0] == "ADD":
		w, err := parseWiring(args[1:])
		if err != nil {
			return err
		}
		loop = w.add
	case len(args) == 4 && args[0] == "DEL":
		address, err := netip.ParseAddr(args[2])
		if err != nil {
			return err
		}
		table, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		loop = func() error { return del(args[1], address, table) }
	default:
		return fmt.Errorf("want ADD NETNS VETH VETH-MAC POD-MAC ALIAS ADDRESS MTU TABLE INDEX or DEL VETH ADDRESS TABLE, got %q", args)
	}
	start := time.Now()
	if err := loop(); err != nil {
		return err
	}
	_, err := fmt.Println(time.Since(start).Nanoseconds())
	return err
}

// wiring is what the command line says.
type wiring struct {
	netns, veth, alias string
	hostMAC, podMAC    net.HardwareAddr
	address            netip.Addr
	mtu, table, index  int
}

func parseWiring(args []string) (wiring, error) {
	w := wiring{netns: args[0], veth: args[1], alias: args[4]}
	var err error
	if w.hostMAC, err = net.ParseMAC(args[2]); err != nil {
		return wiring{}, err
	}
	if w.podMAC, err = net.ParseMAC(args[3]); err != nil {
		return wiring{}, err
	}
	if w.address, err = netip.ParseAddr(args[5]); err != nil {
		return wiring{}, err
	}
	for i, n := range []*int{&w.mtu, &w.table, &w.index} {
		if *n, err = strconv.Atoi(args[6+i]); err != nil {
			return wiring{}, err
		}
	}
	return w, nil
}
