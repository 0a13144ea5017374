package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/introspection"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// introspectCommand shows a view of the running agent by its socket: the image has no shell and no HTTP client, and the
// address of introspection may be turned off.
func introspectCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	socket := flags.String("socket", rpc.SocketPath, "unix socket `path` of the agent")
	view := flags.String("view", "", "`name` of the view; empty: list the names")
	timeout := flags.Duration("timeout", 5*time.Second, "how long to wait for the answer")
	if err := parse(flags, args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	conn, err := nodeagent.Dial(*socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	reply, err := introspection.NewIntrospectionClient(conn.ClientConn).View(ctx, &introspection.ViewRequest{Name: *view})
	if err != nil {
		return fmt.Errorf("ask the node agent on %s: %w", *socket, err)
	}
	var out bytes.Buffer
	for _, name := range reply.GetNames() {
		fmt.Fprintln(&out, name)
	}
	if b := reply.GetJson(); len(b) > 0 {
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return fmt.Errorf("read the node agent's answer: %w", err)
		}
		out.WriteByte('\n')
	}
	_, err = os.Stdout.Write(out.Bytes())
	return err
}
