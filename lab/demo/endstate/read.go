package endstate

import (
	"encoding/json"
	"fmt"
	"strings"
)

type tag struct{ Key, Value string }

type instance struct {
	InstanceID   string `json:"InstanceId"`
	InstanceType string
	State        struct{ Name string }
	Tags         []tag
}

func (i instance) name() string {
	for _, t := range i.Tags {
		if t.Key == "Name" {
			return t.Value
		}
	}
	return "instance-without-a-name"
}

type netif struct {
	NetworkInterfaceID                             string `json:"NetworkInterfaceId"`
	InterfaceType, Status, Description, MacAddress string
	PrivateIPAddresses                             []struct {
		PrivateIPAddress string `json:"PrivateIpAddress"`
		Primary          bool
	} `json:"PrivateIpAddresses"`
	TagSet     []tag
	Groups     []group
	Attachment *struct {
		InstanceID  string `json:"InstanceId"`
		DeviceIndex int
		Status      string
	}
}

type group struct {
	GroupID   string `json:"GroupId"`
	GroupName string
}

type groupRule struct {
	GroupID             string `json:"GroupId"`
	IsEgress            bool
	IPProtocol          string `json:"IpProtocol"`
	FromPort, ToPort    int
	CIDRIPv4            string `json:"CidrIpv4"`
	ReferencedGroupInfo *group
}

type association struct {
	BranchInterfaceID string `json:"BranchInterfaceId"`
	TrunkInterfaceID  string `json:"TrunkInterfaceId"`
	VlanID            int    `json:"VlanId"`
}

type permission struct {
	NetworkInterfaceID string `json:"NetworkInterfaceId"`
	Permission         string
	PermissionState    struct{ State string }
}

// object is the part of an API object that is compared.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Namespace         string            `json:"namespace"`
		Name              string            `json:"name"`
		Labels            map[string]string `json:"labels"`
		Finalizers        []string          `json:"finalizers"`
		DeletionTimestamp string            `json:"deletionTimestamp"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		Features []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"features"`
		Taints []struct {
			Key    string `json:"key"`
			Effect string `json:"effect"`
		} `json:"taints"`
		NodeName    string `json:"nodeName"`
		InstanceID  string `json:"instanceID"`
		TrunkENIID  string `json:"trunkENIID"`
		Capacity    int    `json:"capacity"`
		HostNetwork bool   `json:"hostNetwork"`
		Slots       []struct {
			VLANID int    `json:"vlanID"`
			State  string `json:"state"`
			ENIID  string `json:"eniID"`
			PodUID string `json:"podUID"`
		} `json:"slots"`
	} `json:"spec"`
	Status struct {
		Phase      string            `json:"phase"`
		PodIP      string            `json:"podIP"`
		Capacity   map[string]string `json:"capacity"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		Released []json.RawMessage `json:"released"`
	} `json:"status"`
	Reason         string `json:"reason"`
	InvolvedObject struct {
		Kind string `json:"kind"`
	} `json:"involvedObject"`
	Source struct {
		Component string `json:"component"`
	} `json:"source"`
}

// condition is the status of one of the conditions.
func (o object) condition(kind string) string {
	for _, c := range o.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return "none"
}

// state is what was read.
type state struct {
	instances    []instance
	netifs       []netif
	groups       []group
	rules        []groupRule
	associations []association
	permissions  []permission
	objects      []object
	hosts        []host
}

// host is one instance's kernel and files.
type host struct {
	name                             string
	links, rules, routes, neighbours []map[string]any
	files                            []string
}

func read(o Outputs) (*state, error) {
	var s state
	var reservations struct {
		Reservations []struct{ Instances []instance }
	}
	var netifs struct{ NetworkInterfaces []netif }
	var groups struct{ SecurityGroups []group }
	var rules struct{ SecurityGroupRules []groupRule }
	var associations struct{ InterfaceAssociations []association }
	var permissions struct{ NetworkInterfacePermissions []permission }
	var objects struct {
		Items []object `json:"items"`
	}
	for _, part := range []struct {
		what string
		text []byte
		into any
	}{
		{"instances", o.Instances, &reservations}, {"network interfaces", o.Interfaces, &netifs}, {"security groups", o.Groups, &groups},
		{"rules of security groups", o.Rules, &rules}, {"trunk associations", o.Associations, &associations},
		{"network interface permissions", o.Permissions, &permissions}, {"API objects", o.Objects, &objects},
	} {
		if err := json.Unmarshal(part.text, part.into); err != nil {
			return nil, fmt.Errorf("read the %s of the end state: %w", part.what, err)
		}
	}
	for _, r := range reservations.Reservations {
		s.instances = append(s.instances, r.Instances...)
	}
	s.netifs, s.groups, s.rules = netifs.NetworkInterfaces, groups.SecurityGroups, rules.SecurityGroupRules
	s.associations, s.permissions, s.objects = associations.InterfaceAssociations, permissions.NetworkInterfacePermissions, objects.Items
	for _, in := range o.Hosts {
		h := host{name: in.Name}
		for _, part := range []struct {
			what string
			text []byte
			into *[]map[string]any
		}{{"links", in.Links, &h.links}, {"rules", in.Rules, &h.rules}, {"routes", in.Routes, &h.routes}, {"neighbours", in.Neighbours, &h.neighbours}} {
			if err := json.Unmarshal(part.text, part.into); err != nil {
				return nil, fmt.Errorf("read the %s of host %s: %w", part.what, in.Name, err)
			}
		}
		for l := range strings.Lines(string(in.Files)) {
			h.files = append(h.files, strings.TrimSpace(l))
		}
		s.hosts = append(s.hosts, h)
	}
	return &s, nil
}
