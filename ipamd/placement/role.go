package placement

// Tags and descriptions by which ENIs are known (contracts of the AWS VPC CNI), and EC2's names of interface types.
const (
	TagNoManage      = "node.k8s.amazonaws.com/no_manage"
	TagInstance      = "node.k8s.amazonaws.com/instance_id"
	TrunkDescription = "aws-k8s-trunk-eni"

	typeTrunk   = "trunk"
	typeEFA     = "efa"
	typeEFAOnly = "efa-only"
)

// Facts are what is known of an attached ENI.
type Facts struct {
	Primary bool
	Card    int
	// Addressed is set where it has an IPv4 address at all: an EFA-only interface has none.
	Addressed bool
	// Described says that EC2 told what follows, or never will (ENABLE_IMDS_ONLY_MODE).
	Described         bool
	Type, Description string
	Tags              map[string]string
}

// Rules are what the configuration says of ENIs.
type Rules struct {
	InstanceID string
	// Untagged is MANAGE_UNTAGGED_ENI: ENIs that the agent did not make are used.
	Untagged bool
	// Cards is ENABLE_MULTI_NIC: ENIs of further network cards are used, too. Without it those that the agent made are its own
	// still, until they go.
	Cards bool
}

// Role of an ENI on this node.
type Role int

const (
	// HandsOff: the agent neither sets it up nor uses it. It only takes a slot.
	HandsOff Role = iota
	// Regular ENIs give addresses to pods.
	Regular
	// Trunk carries branch ENIs.
	Trunk
)

// RoleOf says what an ENI is to this node. made is set where the agent made it, so that it may also delete it: somebody
// else's ENI is used and stays.
func RoleOf(f Facts, r Rules) (role Role, made bool) {
	noManage, marked := f.Tags[TagNoManage]
	made = r.InstanceID != "" && f.Tags[TagInstance] == r.InstanceID
	switch {
	case f.Primary:
		return Regular, false
	case !f.Described:
		return HandsOff, false
	case f.Type == typeTrunk || f.Description == TrunkDescription:
		return Trunk, false
	case f.Type == typeEFAOnly || !f.Addressed:
		return HandsOff, false
	case marked && noManage == "true":
		return HandsOff, false
	case f.Card != 0 && !r.Cards && (!made || f.Type == typeEFA):
		return HandsOff, false
	case marked || made || r.Untagged:
		return Regular, made && f.Type != typeEFA
	}
	return HandsOff, false
}
