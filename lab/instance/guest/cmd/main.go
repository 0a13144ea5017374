// The lab's guest agent: PID 1 of a VM (as /init of its initramfs) or of a namespace instance. Only the lab starts it.
package main

import (
	"fmt"
	"os"

	"github.com/branchline-cni/branchline/lab/instance/guest"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == guest.StageEnter:
		err = guest.EnterNetns(os.Args[0], os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == guest.StageInit:
		err = guest.BootNetns(os.Args[2])
	case os.Getpid() == 1:
		err = guest.BootVM()
	default:
		err = fmt.Errorf("this is the init process of the lab's instances; nothing else can start it")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest agent:", err)
		os.Exit(1)
	}
}
