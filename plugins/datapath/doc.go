// Package datapath holds one pod's kernel objects: which links, addresses, neighbours, routes, rules and sysctls wire a
// sandbox (a Plan, a pure function of a Request), and the short loops that apply a plan, undo a part of it, and tear a
// sandbox down again.
//
// It is not the place for what belongs to the whole node (ipamd/hostnet: the rule for the table of local pods, the
// ENIs' tables, the moved local rule, node-wide sysctls), nor for the CNI protocol (plugins/eni).
//
// Whose is what: each link carries its sandbox's mark in its ifalias. A rule belongs to who holds the link it names; a
// rule for an address to who holds that address's route in the table of local pods; everything else vanishes with its
// link. So no teardown, however late, touches what a newer sandbox has made.
package datapath
