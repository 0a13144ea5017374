// Command leancall is onecall by rpc's own client, which the CNI executable uses, in the place of the gRPC library's:
//
//	leancall SOCKET ADD|DEL NAMESPACE POD CONTAINER-ID
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/branchline-cni/branchline/rpc"
)

const deadline = 90 * time.Second

func main() {
	runtime.GOMAXPROCS(1) // as the CNI executable
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "leancall:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("want SOCKET ADD|DEL NAMESPACE POD CONTAINER-ID, got %q", args)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	client, err := rpc.Dial(args[0])
	if err != nil {
		return err
	}
	defer client.Close()
	pod := &rpc.Pod{Namespace: args[2], Name: args[3], Uid: "uid-of-" + args[3]}
	attachment := &rpc.Attachment{ContainerId: args[4], IfName: "eth0"}
	switch args[1] {
	case "ADD":
		_, err = client.Add(ctx, &rpc.AddRequest{Version: rpc.Version, Pod: pod, Attachment: attachment})
	case "DEL":
		_, err = client.Del(ctx, &rpc.DelRequest{Version: rpc.Version, Pod: pod, Attachment: attachment})
	default:
		err = fmt.Errorf("no such verb: %q", args[1])
	}
	return err
}
