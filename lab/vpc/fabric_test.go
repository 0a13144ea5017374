package vpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// syncBuffer is a bytes.Buffer for two goroutines.
type syncBuffer struct {
	mu     sync.Mutex
	b      bytes.Buffer
	closed bool
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newTestFabric(t *testing.T, o Options) *Fabric {
	t.Helper()
	f := New(o)
	f.Apply(testTopology())
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// plug returns the far end of a link at the ENI.
func plug(t *testing.T, f *Fabric, eniID string) Link {
	t.Helper()
	near, far := Pipe()
	if err := f.AddPort(eniID, near); err != nil {
		t.Fatal(err)
	}
	return far
}

func readFrame(t *testing.T, l Link) []byte {
	t.Helper()
	type result struct {
		b   []byte
		err error
	}
	c := make(chan result, 1)
	go func() {
		buf := make([]byte, maxFrame)
		n, err := l.ReadFrame(buf)
		c <- result{buf[:n], err}
	}()
	select {
	case r := <-c:
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.b
	case <-time.After(5 * time.Second):
		t.Fatal("no frame")
		return nil
	}
}

func write(t *testing.T, l Link, f []byte) {
	t.Helper()
	if err := l.WriteFrame(f); err != nil {
		t.Fatal(err)
	}
}

func TestATaggedConnectionIsRecordedAtBothENIsAndARefusedOneToo(t *testing.T) {
	var flows, trunkPcap syncBuffer
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := newTestFabric(t, Options{FlowLog: &flows, FlowInterval: -1, Now: func() time.Time { return now }, Pcap: func(id string) io.Writer {
		if id == nodeENI {
			return &trunkPcap
		}
		return nil
	}})
	node, db := plug(t, f, nodeENI), plug(t, f, dbENI)
	syn := frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN))
	write(t, node, syn)
	readFrame(t, db)
	write(t, db, frame(router1, dbMAC, 0, etherIPv4, tcpPacket(dbIP, 5432, branchIP, 4000, tcpSYN|tcpACK)))
	answer := readFrame(t, node)
	if e, _ := parseEthernet(answer); e.vlan != 7 {
		t.Fatalf("answer %+v", e)
	}
	for range 2 {
		write(t, node, frame(router1, otherMAC, 8, etherIPv4, tcpPacket(otherIP, 4001, dbIP, 5432, tcpSYN)))
	}
	within(t, 5*time.Second, "two drops", func() bool { return f.DropCounts()[DropKey{dbENI, Ingress, NoRule}] == 2 })
	if d := f.Drops(); len(d) != 2 || d[1].ENI != dbENI || d[1].TCPFlags != "SYN" || len(d[1].Rules) != 2 {
		t.Fatalf("drops: %v", d)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	const when = "1767323045 1767323045"
	want := strings.Join([]string{
		"2 111122223333 eni-branch7 192.168.0.17 192.168.0.20 4000 5432 6 1 40 " + when + " ACCEPT OK",
		"2 111122223333 eni-branch7 192.168.0.20 192.168.0.17 5432 4000 6 1 40 " + when + " ACCEPT OK",
		"2 111122223333 eni-branch8 192.168.0.18 192.168.0.20 4001 5432 6 2 80 " + when + " ACCEPT OK",
		"2 111122223333 eni-db 192.168.0.17 192.168.0.20 4000 5432 6 1 40 " + when + " ACCEPT OK",
		"2 111122223333 eni-db 192.168.0.18 192.168.0.20 4001 5432 6 2 80 " + when + " REJECT OK",
		"2 111122223333 eni-db 192.168.0.20 192.168.0.17 5432 4000 6 1 40 " + when + " ACCEPT OK",
		"",
	}, "\n")
	if got := flows.String(); got != want {
		t.Fatalf("flow log:\n%swant:\n%s", got, want)
	}
	if err := f.RemovePort(nodeENI); err != nil {
		t.Fatal(err)
	}
	// The trunk's recording: the file's header, then the SYN, its answer and the two refused SYNs, all tagged.
	rec := []byte(trunkPcap.String())
	if binary.LittleEndian.Uint32(rec) != pcapMagicNanoseconds || !trunkPcap.closed {
		t.Fatal("not a closed recording")
	}
	var frames [][]byte
	for rec = rec[24:]; len(rec) > 0; {
		n := int(binary.LittleEndian.Uint32(rec[8:]))
		frames = append(frames, rec[16:16+n])
		rec = rec[16+n:]
	}
	if len(frames) != 4 || !bytes.Equal(frames[0], syn) || !bytes.Equal(frames[1], answer) {
		t.Fatalf("recorded %d frames: %x", len(frames), frames)
	}
}

func TestFlowLogIsWrittenEveryIntervalAndAtClose(t *testing.T) {
	var flows syncBuffer
	f := newTestFabric(t, Options{FlowLog: &flows, FlowInterval: 20 * time.Millisecond})
	node := plug(t, f, nodeENI)
	send := func(port uint16) {
		write(t, node, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, port, dbIP, 9, tcpSYN)))
	}
	send(1)
	reject := func(port string) func() bool {
		re := regexp.MustCompile(`eni-db 192.168.0.17 192.168.0.20 ` + port + ` 9 6 1 40 \d+ \d+ REJECT OK\n`)
		return func() bool { return re.MatchString(flows.String()) }
	}
	within(t, 5*time.Second, "a REJECT", reject("1"))
	send(2)
	within(t, 5*time.Second, "the second drop", func() bool { return len(f.Drops()) == 2 })
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !reject("2")() {
		t.Fatalf("Close left out the last record: %s", flows.String())
	}
	if err := f.AddPort(dbENI, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("AddPort after Close: %v", err)
	}
}

func TestPortsMayComeBeforeTheTopologyAndGoAtAnyTime(t *testing.T) {
	f := New(Options{})
	defer f.Close()
	node, far := Pipe()
	if err := f.AddPort(nodeENI, node); err != nil {
		t.Fatal(err)
	}
	ask := frame(broadcastMAC, nodeMAC, 0, etherARP, arpMessage(arpRequest, nodeMAC, nodeIP, gateway1))
	write(t, far, ask)
	within(t, 5*time.Second, "a drop", func() bool { return f.DropCounts()[DropKey{nodeENI, Egress, UnknownENI}] == 1 })
	f.Apply(testTopology())
	write(t, far, ask)
	readFrame(t, far)
	if err := f.AddPort(nodeENI, node); !errors.Is(err, ErrPortInUse) {
		t.Fatalf("a second port: %v", err)
	}
	if err := f.RemovePort(nodeENI); err != nil {
		t.Fatal(err)
	}
	if _, err := far.ReadFrame(nil); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("the link after RemovePort: %v", err)
	}
	if err := f.RemovePort(nodeENI); !errors.Is(err, ErrNoPort) {
		t.Fatalf("a second RemovePort: %v", err)
	}
	// The ENI may be plugged in again, by a new link.
	again := plug(t, f, nodeENI)
	write(t, again, ask)
	readFrame(t, again)
}

func TestAnInstanceThatTakesNoFramesHoldsUpNobody(t *testing.T) {
	top := testTopology()
	groupOf(top, "sg-db").Ingress = allOut()
	f := New(Options{})
	defer f.Close()
	f.Apply(top)
	node, far := plug(t, f, nodeENI), plug(t, f, farENI)
	plug(t, f, dbENI) // never read
	blast := frame(router1, nodeMAC, 0, etherIPv4, udpPacket(nodeIP, 1, dbIP, 2, nil))
	for range 256 + portQueue + 100 {
		write(t, node, blast)
	}
	within(t, 10*time.Second, "a full queue", func() bool { return f.DropCounts()[DropKey{dbENI, Ingress, QueueFull}] > 0 })
	write(t, node, frame(router1, nodeMAC, 0, etherIPv4, udpPacket(nodeIP, 1, farIP, 2, nil)))
	readFrame(t, far)
}

// helloService answers HTTP with the ENI's id.
func helloService(addr string, hops uint8) Service {
	return Service{Addr: netip.MustParseAddr(addr), Port: 80, Net: "tcp", HopLimit: hops, ServeTCP: func(l net.Listener, eniID string) {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, eniID+" from "+r.RemoteAddr)
		})}
		srv.Serve(l)
	}}
}

func TestServicesAreAnsweredPerENIOverTrunkAndBranch(t *testing.T) {
	served := make(chan string, 8)
	hello := helloService("169.254.169.254", 1)
	serve := hello.ServeTCP
	hello.ServeTCP = func(l net.Listener, eniID string) {
		serve(l, eniID)
		served <- eniID
	}
	f := newTestFabric(t, Options{Services: []Service{hello}})
	h := plugHost(t, f, nodeENI)
	node := h.addStack(0, nodeMAC, router1, nodeIP)
	branch := h.addStack(7, branchMAC, router1, branchIP)
	h.run()
	to := netip.MustParseAddrPort("169.254.169.254:80")
	get := func(from *stack.Stack) string {
		c, err := dialTCP(t, from, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := get(node); !strings.Contains(got, nodeENI+" from 192.168.0.10:") {
		t.Errorf("node: %s", got)
	}
	if got := get(branch); !strings.Contains(got, branchENI+" from 192.168.0.17:") {
		t.Errorf("branch: %s", got)
	}
	if ttl := <-h.ttl; ttl != 1 {
		t.Errorf("TTL of the service's packet is %d, want its hop limit 1", ttl)
	}
	// A branch that is gone takes its listeners with it.
	top := testTopology()
	top.ENIs = append(top.ENIs[:1], top.ENIs[2:]...)
	f.Apply(top)
	select {
	case id := <-served:
		if id != branchENI {
			t.Errorf("the service of %s ended", id)
		}
	case <-time.After(5 * time.Second):
		t.Error("the branch's service goes on")
	}
}

func TestDgramLinkCarriesFramesBothWaysAndOutlivesItsPeer(t *testing.T) {
	dir := t.TempDir()
	aPath, bPath := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	a, err := DgramLink(aPath, bPath)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.WriteFrame([]byte("lost")); err == nil {
		t.Fatal("a frame to nobody was taken")
	}
	jumbo := bytes.Repeat([]byte{7}, maxFrame)
	for round := range 2 { // the peer comes, goes, and comes again
		b, err := DgramLink(bPath, aPath)
		if err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "a frame taken", func() bool { return a.WriteFrame(jumbo) == nil })
		if got := readFrame(t, b); !bytes.Equal(got, jumbo) {
			t.Fatalf("round %d: %d bytes", round, len(got))
		}
		write(t, b, []byte("answer"))
		if got := readFrame(t, a); string(got) != "answer" {
			t.Fatalf("round %d: %q", round, got)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := DgramLink(filepath.Join(dir, strings.Repeat("x", 108)), bPath); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Fatalf("a long path: %v", err)
	}
}

func TestDgramLinkWaitsForASlowPeerAndLosesNothing(t *testing.T) {
	dir := t.TempDir()
	aPath, bPath := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	a, err := DgramLink(aPath, bPath)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := DgramLink(bPath, aPath)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const frames = 3000 // more than any queue of unix sockets holds
	sent := make(chan error, 1)
	go func() {
		for i := range frames {
			if err := a.WriteFrame(binary.BigEndian.AppendUint32(make([]byte, 1500), uint32(i))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range frames {
		got := readFrame(t, b)
		if n := binary.BigEndian.Uint32(got[1500:]); n != uint32(i) {
			t.Fatalf("frame %d came as number %d", n, i)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestClosingALinkEndsItsReader(t *testing.T) {
	dir := t.TempDir()
	l, err := DgramLink(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.ReadFrame(make([]byte, 10))
		done <- err
	}()
	l.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still reading")
	}
}
