package ec2

import (
	"strconv"

	"github.com/branchline-cni/branchline/aws"
)

func describeInstanceTypes(c *call) ([]element, error) {
	all := make(map[string]aws.InstanceType)
	for _, n := range aws.InstanceTypeNames() {
		all[n], _ = aws.LookupInstanceType(n)
	}
	page, next, err := selectPage(c, all, describable[aws.InstanceType]{
		idParam: "InstanceType", pageMin: 5,
		notFound: func(id string) error {
			return errf("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", id)
		},
		attributes: func(t aws.InstanceType) attributes {
			return attributes{
				"instance-type": {t.Name}, "bare-metal": {strconv.FormatBool(t.BareMetal)}, "hypervisor": one(t.Hypervisor),
				"network-info.maximum-network-interfaces":   {strconv.Itoa(t.MaxInterfaces)},
				"network-info.ipv4-addresses-per-interface": {strconv.Itoa(t.IPv4PerInterface)},
				"processor-info.supported-architecture":     {architecture(t.Name)},
				"network-info.maximum-network-cards":        {strconv.Itoa(len(t.InterfacesPerNetworkCard))},
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("instanceTypeSet", page, instanceTypeElements)}, optional("nextToken", next)), nil
}

func instanceTypeElements(t aws.InstanceType) []element {
	type card struct{ index, max int }
	var cards []card
	for i, n := range t.InterfacesPerNetworkCard {
		cards = append(cards, card{i, n})
	}
	return join([]element{
		str("instanceType", t.Name), flag("bareMetal", t.BareMetal), flag("currentGeneration", true),
		el("processorInfo", el("supportedArchitectures", str("item", architecture(t.Name)))),
		el("networkInfo",
			num("maximumNetworkInterfaces", t.MaxInterfaces), num("maximumNetworkCards", len(cards)),
			num("defaultNetworkCardIndex", t.DefaultNetworkCard),
			list("networkCards", cards, func(cd card) []element {
				return []element{num("networkCardIndex", cd.index), num("maximumNetworkInterfaces", cd.max)}
			}),
			num("ipv4AddressesPerInterface", t.IPv4PerInterface), num("ipv6AddressesPerInterface", t.IPv4PerInterface),
			flag("ipv6Supported", true), str("enaSupport", "required")),
	}, optional("hypervisor", t.Hypervisor))
}
