package placement

import (
	"cmp"
	"slices"
	"strings"
)

// Tags of subnets, and how a node names its ENIConfig (contracts of the AWS VPC CNI).
const (
	// TagRole of a subnet: 0 keeps pods out of it, any other value lets them in.
	TagRole = "kubernetes.io/role/cni"
	// TagClusterPrefix and a cluster's name: a subnet with tags of this kind is for the clusters that they name.
	TagClusterPrefix = "cni.networking.k8s.aws/cluster/"
	// LabelExternal comes before all other ways to name an ENIConfig.
	LabelExternal = "vpc.amazonaws.com/externalEniConfig"
	// DefaultConfig is the ENIConfig of a node that names none.
	DefaultConfig = "default"

	excluded = "0"
)

// Node is what counts of the Node object.
type Node struct {
	Labels, Annotations map[string]string
	// Cordoned nodes get no new pods, daemons aside.
	Cordoned bool
}

// ConfigName is the ENIConfig that a node asks for, and by what; labelKey and annotationKey are ENI_CONFIG_LABEL_DEF and
// ENI_CONFIG_ANNOTATION_DEF.
func ConfigName(n Node, labelKey, annotationKey string) (name, by string) {
	for _, at := range []struct {
		in   map[string]string
		what string
		key  string
	}{{n.Labels, "label", LabelExternal}, {n.Annotations, "annotation", annotationKey}, {n.Labels, "label", labelKey}} {
		if v := at.in[at.key]; v != "" {
			return v, "the node's " + at.what + " " + at.key
		}
	}
	return DefaultConfig, "no label or annotation of the node names another"
}

// ENIConfig is one of custom networking's.
type ENIConfig struct {
	Name, Subnet string
	// Groups may be empty: the primary ENI's are used then.
	Groups []string
}

// Subnet is one of the node's VPC and zone, as EC2 described it lately.
type Subnet struct {
	ID   string
	Free int
	Tags map[string]string
}

// Place is where an ENI can be made.
type Place struct {
	SubnetID string
	Groups   []string
}

// Input is everything that the decision depends on.
type Input struct {
	// Primary is where the primary ENI is.
	Primary Place
	// Custom is custom networking. Known says that the node and the ENIConfigs have been read; Config is the one that the
	// node asks for, nil where there is none of its name.
	Custom, Known bool
	Config        *ENIConfig
	// Discovery is ENABLE_SUBNET_DISCOVERY, Cluster this cluster's name where it is known.
	Discovery bool
	Cluster   string
	// Subnets are those of the node's VPC and zone; nil: not known.
	Subnets []Subnet
	// Full are subnets that had no free address lately, NoPrefix those that had no free prefix; Prefixes says that
	// prefixes are wanted.
	Full, NoPrefix map[string]bool
	Prefixes       bool
}

// Reason why no ENI can be made; the zero value: one can.
type Reason int

// The reasons.
const (
	None Reason = iota
	// NotKnown: the API server has not been heard of yet.
	NotKnown
	// NoConfig: custom networking is on and the node's ENIConfig does not exist.
	NoConfig
	// WrongSubnet: the ENIConfig's subnet is not one of the node's VPC and zone.
	WrongSubnet
	// Excluded: tags keep pods out of every subnet that there is.
	Excluded
	// Full: no subnet that may be used has a free address.
	Full
)

// Plan is the decision.
type Plan struct {
	// Places is where the next ENI can be made, the best first. Reason says why it is empty.
	Places []Place
	Reason Reason
	// Among are the subnets that could be used if they had free addresses.
	Among []string

	in Input
}

// Decide returns where the next ENI is made. Custom networking comes before discovery. Among several subnets the one
// with the most free addresses is first, behind it those without a free prefix where prefixes are wanted.
func Decide(in Input) Plan {
	p := Plan{in: in}
	var usable []Place
	switch {
	case in.Custom && !in.Known:
		p.Reason = NotKnown
	case in.Custom && (in.Config == nil || in.Config.Subnet == ""):
		p.Reason = NoConfig
	case in.Custom && in.Subnets != nil && in.subnet(in.Config.Subnet) == nil:
		p.Reason = WrongSubnet
	case in.Custom:
		groups := in.Config.Groups
		if len(groups) == 0 {
			groups = in.Primary.Groups
		}
		usable = []Place{{in.Config.Subnet, groups}}
	default:
		if usable = in.discover(); len(usable) == 0 {
			p.Reason = Excluded
		}
	}
	for _, u := range usable {
		p.Among = append(p.Among, u.SubnetID)
		if !in.Full[u.SubnetID] {
			p.Places = append(p.Places, u)
		}
	}
	if len(usable) > 0 && len(p.Places) == 0 {
		p.Reason = Full
	}
	if in.Prefixes {
		slices.SortStableFunc(p.Places, func(a, b Place) int { return compareBool(in.NoPrefix[a.SubnetID], in.NoPrefix[b.SubnetID]) })
	}
	return p
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (in Input) subnet(id string) *Subnet {
	if i := slices.IndexFunc(in.Subnets, func(s Subnet) bool { return s.ID == id }); i >= 0 {
		return &in.Subnets[i]
	}
	return nil
}

// discover is which subnets pods may use by their tags: the primary's unless it is kept out, others where they are let in.
func (in Input) discover() (out []Place) {
	free := map[string]int{}
	if in.Discovery {
		for _, s := range in.Subnets {
			_, tagged := s.Tags[TagRole]
			if s.ID != in.Primary.SubnetID && tagged && !in.keptOut(s) {
				out = append(out, Place{s.ID, in.Primary.Groups})
				free[s.ID] = s.Free
			}
		}
	}
	primary := in.subnet(in.Primary.SubnetID)
	if primary != nil {
		free[primary.ID] = primary.Free
	}
	if primary == nil || !in.Discovery || !in.keptOut(*primary) {
		out = append(out, in.Primary)
	}
	slices.SortFunc(out, func(a, b Place) int {
		return cmp.Or(cmp.Compare(free[b.SubnetID], free[a.SubnetID]), cmp.Compare(a.SubnetID, b.SubnetID))
	})
	return out
}

// keptOut says whether the subnet's tags keep this cluster's pods out of it. Where the cluster's name is not known, its
// own nodes' subnet is taken for the cluster's.
func (in Input) keptOut(s Subnet) bool {
	if s.Tags[TagRole] == excluded {
		return true
	}
	if in.Cluster == "" && s.ID == in.Primary.SubnetID {
		return false
	}
	for k := range s.Tags {
		if strings.HasPrefix(k, TagClusterPrefix) {
			_, ours := s.Tags[TagClusterPrefix+in.Cluster]
			return !ours
		}
	}
	return false
}

// Primary is where the primary ENI is.
func (p Plan) Primary() Place { return p.in.Primary }

// Serves says whether pods may get addresses of a regular ENI in that subnet. One that does not serve keeps its pods and
// gets no others. What is not known keeps nobody out: an ENI serves on while its ENIConfig is away or wrong, or in a subnet
// that EC2 did not show.
func (p Plan) Serves(subnetID string, primary bool) bool {
	in := p.in
	switch {
	case in.Custom && primary:
		return false
	case in.Custom:
		return p.Reason == NotKnown || p.Reason == NoConfig || p.Reason == WrongSubnet || in.Config.Subnet == subnetID
	case in.Discovery:
		s := in.subnet(subnetID)
		return s == nil || !in.keptOut(*s)
	}
	return true
}
