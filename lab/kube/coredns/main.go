// Command coredns is CoreDNS with the plugins that a Kubernetes cluster's DNS
// needs and no others, so that it links quickly. It is a module of its own:
// CoreDNS pins library versions that must not become ours.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order in which a query passes the plugins, CoreDNS's own.
	dnsserver.Directives = []string{
		"health", "ready", "log", "errors", "cache", "loop", "kubernetes", "forward",
	}
	coremain.Run()
}
