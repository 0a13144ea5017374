// Command onecall is the benchmark's process with nothing but one call to the node agent, by the gRPC library's client: what
// whoever writes such an executable would take.
//
//	onecall SOCKET ADD|DEL NAMESPACE POD CONTAINER-ID
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

const deadline = 90 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "onecall:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("want SOCKET ADD|DEL NAMESPACE POD CONTAINER-ID, got %q", args)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	client, err := nodeagent.Dial(args[0])
	if err != nil {
		return err
	}
	defer client.Close()
	pod := &rpc.Pod{Namespace: args[2], Name: args[3], Uid: "uid-of-" + args[3]}
	attachment := &rpc.Attachment{ContainerId: args[4], IfName: "eth0"}
	switch args[1] {
	case "ADD":
		_, err = client.Add(ctx, &rpc.AddRequest{Version: rpc.Version, Pod: pod, Attachment: attachment}, grpc.WaitForReady(true))
	case "DEL":
		_, err = client.Del(ctx, &rpc.DelRequest{Version: rpc.Version, Pod: pod, Attachment: attachment})
	default:
		err = fmt.Errorf("no such verb: %q", args[1])
	}
	return err
}
