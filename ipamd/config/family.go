package config

// checkFamily holds the cluster's family to what goes with it.
func (c *Config) checkFamily() (errs []error) {
	switch {
	case c.IPv4 && c.IPv6:
		errs = append(errs, &Error{"ENABLE_IPv6", "true", "pods have one family, and ENABLE_IPv4 is true as well", "with ENABLE_IPv4=false, or false"})
	case !c.IPv4 && !c.IPv6:
		errs = append(errs, &Error{"ENABLE_IPv4", "false", "pods would have no address, as ENABLE_IPv6 is false as well", "true, or false with ENABLE_IPv6=true"})
	}
	if c.IPv6 && c.CustomNetworking {
		errs = append(errs, &Error{"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true", "pods of IPv6 clusters have addresses of the primary ENI's prefix: no ENI is made for them", "false where ENABLE_IPv6 is true"})
	}
	if c.IPv6 && c.MultiNIC {
		errs = append(errs, &Error{"ENABLE_MULTI_NIC", "true", "pods of IPv6 clusters have addresses of the primary ENI's prefix, and so one interface", "false where ENABLE_IPv6 is true"})
	}
	return errs
}

// familyWarning is for what an IPv6 cluster does whatever a variable says.
func (c *Config) familyWarning() string {
	if c.IPv6 && !c.PrefixDelegation {
		return "ENABLE_PREFIX_DELEGATION is not true: pods of IPv6 clusters get addresses of a prefix all the same"
	}
	return ""
}
